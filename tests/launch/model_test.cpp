// Commands that take a model: parity, convert, generate, eval.
#include <gtest/gtest.h>

#include "tests/launch/program.h"

namespace levin::testing {
namespace {

TEST(Parity, HoldsOnEveryGoldenFolder) {
    int folders = 0;
    for (const auto& entry : std::filesystem::directory_iterator(source_folder() + "/tests/golden")) {
        if (!entry.is_directory()) continue;
        ++folders;
        for (const char* dtype : {"f32", "f64"}) {
            const Outcome outcome = shell(levin() + " parity " + entry.path().string() + " --dtype " + dtype);
            EXPECT_EQ(outcome.status, 0) << outcome.output;
            EXPECT_TRUE(outcome.says("all hold"));
        }
        EXPECT_EQ(shell(levin() + " parity " + entry.path().string() + " --dtype bf16").status, 0);
    }
    EXPECT_EQ(folders, 5);
}

TEST(Parity, FailsOnAModelThatIsNotTheReference) {
    const TemporaryFolder folder;
    std::filesystem::copy(source_folder() + "/tests/golden/tnl3-gate", folder / "wrong");
    const std::string config = read_text(folder / "wrong/config.json");
    std::string changed = config;
    changed.replace(changed.find("\"silu\""), 6, "\"relu\"");
    folder.write("wrong/config.json", changed);
    const Outcome outcome = shell(levin() + " parity " + (folder / "wrong"));
    EXPECT_EQ(outcome.status, 1) << outcome.output;
    EXPECT_TRUE(outcome.says("FAILED"));
    EXPECT_EQ(shell(levin() + " parity " + folder.path()).status, 2);
    EXPECT_EQ(shell(levin() + " parity " + (folder / "wrong") + " --dtype f16").status, 2);
}

TEST(Convert, ThereAndBackGivesTheSameBytes) {
    for (const char* name : {"tnl-base", "tnl3-gate", "tnl-layernorm-1elu-untied"}) {
        const TemporaryFolder folder;
        const std::string golden = source_folder() + "/tests/golden/" + name;
        ASSERT_EQ(shell(levin() + " convert from-hf " + golden + " " + (folder / "native")).status, 0);
        ASSERT_EQ(shell(levin() + " convert to-hf " + (folder / "native") + " " + (folder / "hf")).status, 0);
        // The export computes what the published code did.
        std::filesystem::copy(golden + "/golden.safetensors", folder / "hf/golden.safetensors");
        const Outcome parity = shell(levin() + " parity " + (folder / "hf"));
        EXPECT_EQ(parity.status, 0) << parity.output;
        const Outcome refused =
            shell(levin() + " convert to-hf " + (folder / "native") + " " + (folder / "hf"));
        EXPECT_EQ(refused.status, 2) << refused.output;
    }
}

class TrainedModel : public ::testing::Test {
protected:
    void SetUp() override {
        make_shard(folder_);
        ASSERT_EQ(shell(train(folder_, "run", "trainer.steps=60")).status, 0);
        run_ = folder_ / "run";
    }
    TemporaryFolder folder_;
    std::string run_;
};

TEST_F(TrainedModel, GeneratesTheSameTextForTheSameSeed) {
    const std::string command =
        levin() + " generate " + run_ + " --prompt 'the light ' --max-tokens 60 --seed ";
    const Outcome first = shell(command + "1");
    EXPECT_EQ(first.status, 0) << first.output;
    EXPECT_TRUE(first.says("the light ")) << first.output;
    EXPECT_GT(first.output.size(), 50u);
    EXPECT_EQ(shell(command + "1").output, first.output);
    EXPECT_NE(shell(command + "2").output, first.output);
    EXPECT_EQ(shell(command + "1 --temperature 0").output, shell(command + "2 --top-k 1").output);
    // From the export as well, with the tokenizer that went along.
    ASSERT_EQ(shell(levin() + " convert to-hf " + run_ + " " + (folder_ / "hf")).status, 0);
    EXPECT_EQ(
        shell(levin() + " generate " + (folder_ / "hf") + " --prompt 'the light ' --max-tokens 60 --seed 1")
            .output,
        first.output);
}

TEST_F(TrainedModel, EvaluatesToThePerplexityItTrainedTo) {
    const Outcome whole =
        shell(levin() + " eval " + run_ + " --data " + (folder_ / "text") + " --sequence-length 64 --json");
    ASSERT_EQ(whole.status, 0) << whole.output;
    const double loss = std::stod(whole.output.substr(whole.output.find("\"loss\": ") + 8));
    EXPECT_LT(loss, 3.0);
    EXPECT_GT(loss, 0.5);
    const Outcome two = shell(mpirun(2) + levin() + " eval " + run_ + " --data " + (folder_ / "text") +
                              " --sequence-length 64 --json");
    EXPECT_NEAR(std::stod(two.output.substr(two.output.find("\"loss\": ") + 8)), loss, 1e-6) << two.output;
}

TEST_F(TrainedModel, TrainingStartsFromAConvertedModel) {
    ASSERT_EQ(shell(levin() + " convert to-hf " + run_ + " " + (folder_ / "hf")).status, 0);
    ASSERT_EQ(shell(levin() + " convert from-hf " + (folder_ / "hf") + " " + (folder_ / "tuned")).status, 0);
    const Outcome outcome =
        shell(train(folder_, "tuned", "trainer.steps=2 optimizer.learning_rate=1e-5 trainer.seed=9"));
    ASSERT_EQ(outcome.status, 0) << outcome.output;
    const auto loss = [](const std::string& row) { return std::stod(row.substr(row.find("\"loss\":") + 7)); };
    EXPECT_LT(loss(lines(folder_ / "tuned/metrics.jsonl").front()), 3.0);  // not from random weights
}

TEST_F(TrainedModel, TheHelpOfEveryCommandHasAnExample) {
    for (const char* command : {"train", "data build", "tokenizer train", "convert to-hf", "convert from-hf",
                                "parity", "generate", "eval", "report", "bench", "doctor"}) {
        const Outcome help = shell(levin() + " " + command + " --help");
        EXPECT_EQ(help.status, 0) << command;
        EXPECT_TRUE(help.says("xample")) << command << help.output;
    }
}

}  // namespace
}  // namespace levin::testing
