// Every wrong configuration ends in Error(input) that says where, what was found, what was expected.
#include <gtest/gtest.h>

#include "kernels/base/error.h"
#include "tests/temporary_folder.h"
#include "trainer/config.h"

namespace levin {
namespace {

using test::TemporaryFolder;

template <class Body>
std::string input_error(const Body& body) {
    try {
        body();
    } catch (const Error& error) {
        EXPECT_EQ(error.fault(), Fault::input) << error.what();
        EXPECT_EQ(error.exit_status(), 2);
        return error.what();
    }
    ADD_FAILURE() << "no error";
    return "";
}

std::string message(const std::string& text, const std::vector<std::string>& overrides = {}) {
    return input_error([&] { parse_config(text, "a.yaml", overrides); });
}

// The message holds all parts.
void expect_parts(const std::string& message, const std::vector<std::string>& parts) {
    for (const std::string& part : parts)
        EXPECT_NE(message.find(part), std::string::npos) << part << "\nin: " << message;
}

TEST(ConfigErrors, UnknownOrMisspeltKeyNamesFileLineColumnAndTheNearestKey) {
    expect_parts(message("model:\n  hidden_size: 64\n  num_layer: 3\n"),
                 {"[a.yaml:3:3]", "unknown key model.num_layer", "nearest valid key is model.num_layers"});
    expect_parts(message("trainer: {setps: 3}"), {"[a.yaml:1:11]", "trainer.setps", "trainer.steps"});
    expect_parts(message("trainer:\n  learning_rate: 3"), {"[a.yaml:2:3]", "optimizer.learning_rate"});
    expect_parts(message("trianer:\n  steps: 3"), {"[a.yaml:1:1]", "unknown key trianer", "is trainer"});
    expect_parts(message("steps: 3"), {"[a.yaml:1:1]", "unknown key steps", "trainer.steps"});
    expect_parts(message("trainer.stps: 3"), {"[a.yaml:1:1]", "trainer.steps"});
    expect_parts(message("", {"optimiser.learning_rate=1"}),
                 {"override 'optimiser.learning_rate=1'", "optimizer.learning_rate"});
}

TEST(ConfigErrors, ASectionIsNoKey) {
    expect_parts(message("", {"trainer=3"}), {"override 'trainer=3'", "is a section", "trainer.steps=1000"});
    expect_parts(message("", {"model={family: tnl3}"}), {"is a section", "model.family=tnl"});
    expect_parts(message("trainer: 3"), {"[a.yaml:1:10]", "is a section"});
}

TEST(ConfigErrors, ATextIsUtf8WithoutNul) {
    expect_parts(message("run:\n  name: caf\xe9 x\n"),
                 {"[a.yaml:2:9]", "run.name", "0xe9", "\"caf\"", "UTF-8"});
    expect_parts(message("run: {folder: \"runs/a\\0b\"}"), {"run.folder", "0x00", "\"runs/a\""});
    expect_parts(message("", {"run.folder=runs/\xff"}), {"run.folder", "0xff"});
    expect_parts(message("data: {train: [a, \"b\xc3\"]}"), {"data.train", "0xc3"});
    expect_parts(message("data: {train: [{prefix: \"b\\0\"}]}"), {"data.train", "0x00"});
    EXPECT_EQ(parse_config("run: {name: \"h\xc3\xa9 \xf0\x9f\x98\x80\"}", "a.yaml").run.name,
              "h\xc3\xa9 \xf0\x9f\x98\x80");
}

TEST(ConfigErrors, TabsAreNamed) {
    expect_parts(message("trainer:\n  seed: 1\nmodel:\n\thidden_size: 64\n"),
                 {"[a.yaml:4:", "line 4", "a tab"});
    EXPECT_EQ(message("model: {family: tnl").find("a tab"), std::string::npos);
}

TEST(ConfigErrors, WrongTypeShowsValueExpectedTypeAndExample) {
    expect_parts(message("trainer:\n  steps: many\n"),
                 {"[a.yaml:2:10]", "trainer.steps is \"many\"", "expected an integer", "1 or more",
                  "trainer.steps: 1000"});
    expect_parts(message("trainer: {steps: 1.5}"), {"\"1.5\"", "expected an integer"});
    expect_parts(message("trainer: {steps: [1]}"), {"a list", "expected an integer"});
    expect_parts(message("trainer: {steps: }"), {"empty", "expected an integer"});
    expect_parts(message("trainer: {steps: 99999999999999999999}"),
                 {"99999999999999999999", "expected an integer"});
    expect_parts(message("optimizer:\n  learning_rate: fast"), {"[a.yaml:2:18]", "expected a number"});
    expect_parts(message("optimizer: {learning_rate: .nan}"), {"expected a number"});
    expect_parts(message("optimizer: {learning_rate: 1e999}"), {"expected a number"});
    expect_parts(message("model: {bias: maybe}"), {"expected true or false"});
    expect_parts(message("model: {norm: batchnorm}"), {"\"batchnorm\"", "simplermsnorm, rmsnorm, layernorm"});
    expect_parts(message("model: {qk_activation: tanh}"), {"\"tanh\"", "1+elu"});
    expect_parts(message("model: {family: gpt}"), {"tnl, tnl3, transformer"});
    expect_parts(message("model:\n  mixer: [lightning, linear]"),
                 {"[a.yaml:2:22]", "\"linear\"", "lightning, softmax"});
    expect_parts(message("model: {mixer: []}"), {"model.mixer"});
    expect_parts(message("model: {lrpe_layers: second}"), {"first, all, none or a list"});
    expect_parts(message("checkpoint: {resume: yes}"), {"auto, none"});
    expect_parts(message("run: {folder: [a]}"), {"run.folder is a list", "a text"});
    expect_parts(message("data: {train: [{prefx: a}]}"), {"[a.yaml:1:17]", "\"prefx\"", "{prefix: PREFIX"});
    expect_parts(message("data: {train: [{prefix: a, weight: -1}]}"), {"data.train", "above 0"});
    expect_parts(message("data: {train: [a, '']}"), {"data.train", "PREFIX"});
    expect_parts(message("trainer: 5"), {"[a.yaml:1:10]", "trainer is a section", "steps"});
    expect_parts(message("- a\n- b"), {"no mapping of sections"});
    expect_parts(message("", {"trainer.steps=many"}),
                 {"override 'trainer.steps=many'", "expected an integer"});
    expect_parts(message("", {"trainer.steps={"}), {"override 'trainer.steps={'", "not valid YAML"});
    expect_parts(message("", {"trainer.steps"}), {"expected key=value"});
    expect_parts(message("", {"base=x.yaml"}), {"belongs into a configuration file"});
}

TEST(ConfigErrors, OutOfRangeNamesTheRange) {
    expect_parts(message("trainer: {steps: 0}"), {"trainer.steps is \"0\"", "1 or more"});
    expect_parts(message("optimizer: {beta1: 1}"), {"optimizer.beta1", "0 or more, below 1"});
    expect_parts(message("optimizer: {eps: 0}"), {"above 0"});
    expect_parts(message("trainer: {micro_batch: -4}"), {"trainer.micro_batch", "1 to"});
    expect_parts(message("model: {glu_dim: -2}"), {"-1 to"});
}

TEST(ConfigErrors, HeadsThatDoNotDivideTheWidth) {
    expect_parts(message("model:\n  hidden_size: 64\n  num_heads: 5\n"),
                 {"[a.yaml:3:14]", "model.num_heads is 5", "model.hidden_size is 64", "4 and 8"});
    expect_parts(message("model: {hidden_size: 64}", {"model.num_heads=100"}),
                 {"override 'model.num_heads=100'", "model.num_heads is 100"});
}

TEST(ConfigErrors, CombinationsThatCannotWork) {
    expect_parts(message("model: {num_heads: 8, num_kv_heads: 3}"), {"model.num_kv_heads is 3", "divide"});
    expect_parts(message("model: {glu_dim: 0, position: rope}"), {"model.position is rope", "softmax"});
    expect_parts(message("model: {num_layers: 2, lrpe_layers: [0, 2]}"), {"layer 2", "0 to 1"});
    expect_parts(message("model: {num_layers: 2, lrpe_layers: [1, 0]}"), {"ascending"});
    expect_parts(message("model: {num_layers: 1, mixer: [softmax, lightning]}"), {"model.mixer lists 2"});
    expect_parts(message("model: {vocab_size: 100, eos_token_id: 100}"),
                 {"model.eos_token_id is 100", "100"});
    expect_parts(message("model: {family: transformer, hidden_size: 6, num_heads: 2}"), {"even head width"});
    expect_parts(message("trainer: {global_batch: 10, micro_batch: 4}"),
                 {"trainer.global_batch is 10", "trainer.micro_batch is 4", "trainer.global_batch=12"});
    expect_parts(message("{trainer: {sequence_length: 200}, model: {position: absolute, max_position: 100}}"),
                 {"trainer.sequence_length is 200", "model.max_position is 100"});
    expect_parts(message("{data: {packed_documents: true}, model: {position: absolute}}"),
                 {"data.packed_documents is true", "model.position: absolute", "trainer.micro_batch"});
    expect_parts(message("trainer: {sequence_length: 1000000000, micro_batch: 8, global_batch: 8}"),
                 {"2^31"});
    expect_parts(message("trainer: {recompute_slice: 512}"),
                 {"trainer.recompute_slice is 512", "selective", "trainer.recompute=full"});
    const char* hybrid =
        "{model: {mixer: [lightning, softmax]}, trainer: {recompute: full, sequence_length: 600}}";
    expect_parts(message(hybrid, {"trainer.recompute_slice=599"}),
                 {"trainer.recompute_slice is 599", "softmax", "0 or 600", "model.mixer=lightning"});
    EXPECT_NO_THROW(parse_config(hybrid, "a.yaml", {"trainer.recompute_slice=600"}));
    EXPECT_NO_THROW(parse_config(hybrid, "a.yaml", {"trainer.recompute_slice=300", "parallel.cp=2"}));
    expect_parts(message("optimizer: {learning_rate: 1e-4, min_learning_rate: 1e-3}"),
                 {"optimizer.min_learning_rate"});
    Config config;
    config.trainer.global_batch = 12;
    config.trainer.micro_batch = 2;
    EXPECT_NO_THROW(validate_batch(config, 3));
    expect_parts(input_error([&] { validate_batch(config, 4); }),
                 {"4 data-parallel ranks", "trainer.global_batch=16"});
}

// A model's configuration may come from a foreign file, past the schema's ranges.
TEST(ConfigErrors, AModelOfImpossibleSize) {
    for (int64_t ModelConfig::*field :
         {&ModelConfig::vocab_size, &ModelConfig::hidden_size, &ModelConfig::num_layers,
          &ModelConfig::num_heads, &ModelConfig::max_position})
        for (const int64_t size : {int64_t{0}, int64_t{-1}, int64_t{1} << 62}) {
            ModelConfig model;
            model.*field = size;
            expect_parts(input_error([&] { model.validate(); }), {std::to_string(size), "expected 1 to"});
        }
}

TEST(ConfigErrors, Duplicates) {
    expect_parts(message("trainer:\n  steps: 3\n  steps: 4\n"),
                 {"[a.yaml:3:3]", "trainer.steps stands twice", "a.yaml:2:10"});
    expect_parts(message("trainer: {steps: 3}\ntrainer.steps: 4"), {"[a.yaml:2:1]", "stands twice"});
    expect_parts(message("trainer: {steps: 3}\ntrainer: {steps: 4}"), {"[a.yaml:2:11]", "stands twice"});
}

TEST(ConfigErrors, TrainingNeedsAFolderAndData) {
    Config config;
    expect_parts(input_error([&] { validate_for_training(config); }),
                 {"run.folder is not set", "run.folder=runs/first"});
    config.run.folder = "x";
    expect_parts(input_error([&] { validate_for_training(config); }),
                 {"data.train is empty", "levin data build"});
    config.data.train = {{"p", 1.0}};
    EXPECT_NO_THROW(validate_for_training(config));
}

TEST(ConfigErrors, FilesThatCannotBeRead) {
    const TemporaryFolder folder;
    expect_parts(input_error([&] { load_config(folder / "none.yaml"); }),
                 {"none.yaml", "there is no configuration file"});
    expect_parts(input_error([&] { load_config(folder.path()); }), {"there is no configuration file"});
    const std::string broken = folder.write("broken.yaml", "trainer:\n  steps: [1, 2\n");
    expect_parts(input_error([&] { load_config(broken); }), {"broken.yaml:", "not valid YAML"});
    const std::string tab = folder.write("tab.yaml", "trainer:\n\tsteps: 3\n");
    expect_parts(input_error([&] { load_config(tab); }), {"tab.yaml:2:", "not valid YAML"});
    const std::string two = folder.write("two.yaml", "trainer: {steps: 3}\n---\ntrainer: {steps: 4}\n");
    expect_parts(input_error([&] { load_config(two); }), {"2 YAML documents"});
    const std::string large = folder.write("large.yaml", std::string(2 << 20, '#'));
    expect_parts(input_error([&] { load_config(large); }), {"2097152 bytes"});
    const std::string noise = folder.write("noise.yaml", std::string("\x00\xff\xfe{[&*\x01", 8));
    EXPECT_FALSE(input_error([&] { load_config(noise); }).empty());
    const std::string deep = folder.write("deep.yaml", "trainer: " + std::string(100000, '['));
    EXPECT_FALSE(input_error([&] { load_config(deep); }).empty());
    const std::string itself = folder.write("alias.yaml", "data:\n  train: &a [*a]\n");
    EXPECT_FALSE(input_error([&] { load_config(itself); }).empty());
}

TEST(ConfigErrors, BasesThatCannotBeRead) {
    const TemporaryFolder folder;
    const std::string missing = folder.write("missing.yaml", "trainer: {steps: 3}\nbase: gone.yaml\n");
    expect_parts(input_error([&] { load_config(missing); }), {"missing.yaml:2:7", "gone.yaml"});
    folder.write("one.yaml", "base: two.yaml\n");
    const std::string two = folder.write("two.yaml", "base: one.yaml\n");
    expect_parts(input_error([&] { load_config(two); }), {"circle", "one.yaml", "two.yaml"});
    folder.write("wrong.yaml", "\ntrainer: {stps: 3}\n");
    const std::string top = folder.write("top.yaml", "base: wrong.yaml\n");
    expect_parts(input_error([&] { load_config(top); }), {"wrong.yaml:2:11", "trainer.steps"});
    const std::string map = folder.write("map.yaml", "base: {a: b}\n");
    expect_parts(input_error([&] { load_config(map); }), {"map.yaml:1:7", "path of a configuration file"});
}

}  // namespace
}  // namespace levin
