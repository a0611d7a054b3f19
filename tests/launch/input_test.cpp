// Wrong input: every case ends with status 2 and a message that says what to do, and nothing is lost.
#include <gtest/gtest.h>

#include "tests/launch/program.h"

namespace levin::testing {
namespace {

// Status 2, and the message holds each of the parts.
void expect_refused(const std::string& command, const std::vector<std::string>& parts) {
    const Outcome outcome = shell(command);
    EXPECT_EQ(outcome.status, 2) << command << "\n" << outcome.output;
    for (const std::string& part : parts)
        EXPECT_TRUE(outcome.says(part)) << command << "\nmissing: " << part << "\n" << outcome.output;
}

class WrongInput : public ::testing::Test {
protected:
    void SetUp() override { make_shard(folder_); }
    std::string train_with(const std::string& settings) {
        return train(folder_, "run", "trainer.steps=2 " + settings);
    }
    TemporaryFolder folder_;
};

TEST_F(WrongInput, InTheConfiguration) {
    const std::string file = folder_.write("typo.yaml", "model:\n  hiden_size: 64\n");
    expect_refused(levin() + " train " + file, {"typo.yaml:2:3", "hiden_size", "hidden_size"});
    const std::string type = folder_.write("type.yaml", "trainer:\n  steps: many\n");
    expect_refused(levin() + " train " + type, {"type.yaml:2:", "steps", "many"});
    expect_refused(train_with("model.num_heads=7"), {"num_heads", "7"});
    expect_refused(train_with("trainer.stepz=1"), {"trainer.stepz", "trainer.steps"});
    expect_refused(train_with("trainer.global_batch=3"), {"global_batch"});
    expect_refused(train_with("model.glu_activation=exp"), {"glu_activation", "silu"});
    expect_refused(train_with("parallel.tp=2"), {"parallel.tp"});
    expect_refused(train_with("parallel.zero=4"), {"parallel.zero", "4"});
    expect_refused(levin() + " train " + (folder_ / "missing.yaml"), {"missing.yaml"});
    expect_refused(levin() + " train " + source_folder() + "/configs/tiny.yaml data.train=x", {"run.folder"});
    EXPECT_FALSE(std::filesystem::exists(folder_ / "run"));
}

TEST_F(WrongInput, OnTheCommandLine) {
    expect_refused(levin() + " trian", {"trian"});
    expect_refused(levin(), {});
    expect_refused(levin() + " generate", {"MODEL"});
    expect_refused(levin() + " generate " + (folder_ / "nowhere"), {"nowhere"});
    expect_refused(levin() + " data build --input " + (folder_ / "text.txt") +
                       " --tokenizer klingon --output " + (folder_ / "x"),
                   {"klingon", "byte"});
    EXPECT_EQ(shell(levin() + " --version").status, 0);
    for (const std::string threads : {"0", "many", "99999999"})
        expect_refused("OMP_NUM_THREADS=" + threads + " " + levin() + " config docs", {"OMP_NUM_THREADS"});
    EXPECT_EQ(shell("OMP_NUM_THREADS=2,1 " + levin() + " config docs").status, 0);
    expect_refused("TMPDIR=/nowhere " + source_folder() + "/launch/run -n 2 true", {"TMPDIR", "/nowhere"});
}

TEST_F(WrongInput, ValuesOfOptions) {
    ASSERT_EQ(shell(train_with("")).status, 0);
    const std::string generate = levin() + " generate " + (folder_ / "run") + " --max-tokens 2 ";
    expect_refused(generate + "--temperature nan", {"--temperature", "0 or more", "nan"});
    expect_refused(generate + "--temperature -1", {"--temperature", "0 or more, got -1"});
    expect_refused(generate + "--temperature inf", {"--temperature", "0 or more, got inf"});
    expect_refused(generate + "--top-p nan", {"--top-p", "0 to 1", "nan"});
    expect_refused(generate + "--seed -1", {"--seed", "-1"});
    expect_refused(generate + "--prompt-file " + (folder_ / ""), {folder_ / ""});
    expect_refused(generate + "--prompt-file " + (folder_ / "nowhere"), {"nowhere"});
    const std::string build = levin() + " data build --tokenizer byte --input " + (folder_ / "text.txt") +
                              " --output " + (folder_ / "built") + " --format ";
    expect_refused(build + "parquet", {"--format", "auto or jsonl or txt; got parquet"});
    expect_refused(build + "1", {"--format", "got 1"});
    EXPECT_EQ(shell(build + "txt --split-documents blank-lines --invalid-utf8 fail").status, 0);
}

TEST_F(WrongInput, ADeviceThatIsNotThere) {
    const Outcome gpu = shell("nvidia-smi");
    if (gpu.status == 0) return;  // there is one: nothing to refuse
    expect_refused(train_with("trainer.device=cuda"), {"cuda", "trainer.device=cpu"});
    expect_refused(levin() + " parity " + source_folder() + "/tests/golden/tnl-base --device cuda", {"cuda"});
}

TEST_F(WrongInput, Shards) {
    expect_refused(train_with("data.train=" + (folder_ / "nothing")), {"nothing"});
    // Truncated tokens.
    std::filesystem::copy(folder_ / "text.bin", folder_ / "cut.bin");
    std::filesystem::copy(folder_ / "text.idx", folder_ / "cut.idx");
    std::filesystem::resize_file(folder_ / "cut.bin", 1000);
    expect_refused(train_with("data.train=" + (folder_ / "cut")), {"cut"});
    // A corrupt index.
    std::filesystem::copy(folder_ / "text.bin", folder_ / "bad.bin");
    folder_.write("bad.idx", std::string(100, 'x'));
    expect_refused(train_with("data.train=" + (folder_ / "bad")), {"bad"});
    // Tokens beyond the vocabulary of the model.
    expect_refused(train_with("model.vocab_size=100 model.eos_token_id=-1"), {"100"});
    std::filesystem::remove(folder_ / "text.json");  // now only the tokens tell
    expect_refused(train_with("model.vocab_size=100 model.eos_token_id=-1"), {"document", "100"});
}

TEST_F(WrongInput, Corpora) {
    const std::string build =
        levin() + " data build --tokenizer byte --output " + (folder_ / "out") + " --input ";
    expect_refused(build + folder_.write("empty.txt", ""), {"empty"});
    expect_refused(build + folder_.write("bad.jsonl", "{\"text\": \"a\"}\n{\"text\": \n"),
                   {"bad.jsonl", "2"});
    expect_refused(build + folder_.write("latin.txt", "caf\xe9 au lait, and more") + " --invalid-utf8 fail",
                   {"latin.txt"});
    const Outcome replaced = shell(build + (folder_ / "latin.txt"));
    EXPECT_EQ(replaced.status, 0) << replaced.output;
    EXPECT_TRUE(replaced.says("UTF-8")) << replaced.output;
    expect_refused(build + (folder_ / "latin.txt"), {"out", "--overwrite"});
}

TEST_F(WrongInput, ModelFiles) {
    std::filesystem::copy(source_folder() + "/tests/golden/tnl3-gate", folder_ / "model");
    const std::string file = folder_ / "model/model.safetensors";
    const std::string good = read_text(file);
    folder_.write("model/model.safetensors", good.substr(0, 5));
    expect_refused(levin() + " parity " + (folder_ / "model"), {"model.safetensors"});
    folder_.write("model/model.safetensors",
                  std::string("\xff\xff\xff\xff\xff\xff\xff\x7f", 8) + good.substr(8));
    expect_refused(levin() + " parity " + (folder_ / "model"), {"model.safetensors"});
    folder_.write("model/model.safetensors", good.substr(0, good.size() / 2));
    expect_refused(levin() + " parity " + (folder_ / "model"), {"model.safetensors"});
}

}  // namespace
}  // namespace levin::testing
