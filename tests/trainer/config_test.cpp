// What a configuration means when it is right: values, bases, overrides, writing it back, the files in
// configs/.
#include "trainer/config.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "tests/temporary_folder.h"
#include "trainer/run_folder.h"
#include "trainer/schema.h"

namespace levin {
namespace {

namespace fs = std::filesystem;
using test::read_text;
using test::TemporaryFolder;

std::string source_folder() {
    const char* folder = std::getenv("LEVIN_SOURCE_DIR");
    return folder ? folder : ".";
}

TEST(Config, AnEmptyFileGivesTheDefaults) {
    EXPECT_EQ(parse_config("", "empty.yaml"), Config{});
    EXPECT_EQ(parse_config("# nothing\nmodel:\n", "comment.yaml"), Config{});
}

TEST(Config, ReadsEveryKindOfValue) {
    const Config config = parse_config(R"(
run: {folder: runs/a, name: "a: first"}
model:
  hidden_size: 96
  num_heads: 6
  num_layers: 3
  mixer: [lightning, softmax]
  lrpe_layers: [0, 2]
  decay: alibi-no-temperature
  qk_activation: swish
  bias: true
data:
  train: [x, {prefix: y, weight: 0.25}]
trainer.precision: bf16
trainer:
  device: cuda
checkpoint:
  resume: none
optimizer:
  learning_rate: 1e-3
)",
                                       "a.yaml");
    EXPECT_EQ(config.run.name, "a: first");
    EXPECT_EQ(config.model.head_dim(), 16);
    EXPECT_EQ(config.model.mixer_of(1), Mixer::softmax);
    EXPECT_EQ(config.model.mixer_of(2), Mixer::lightning);
    EXPECT_TRUE(config.model.uses_lrpe(0) && config.model.uses_lrpe(2));
    EXPECT_FALSE(config.model.uses_lrpe(1));
    EXPECT_TRUE(config.model.uses_rope(1));
    EXPECT_EQ(config.model.decay, Decay::alibi_no_temperature);
    EXPECT_EQ(config.model.qk_activation, Activation::silu);
    EXPECT_TRUE(config.model.bias);
    ASSERT_EQ(config.data.train.size(), 2u);
    EXPECT_EQ(config.data.train[1], (DataSource{"y", 0.25}));
    EXPECT_EQ(config.trainer.precision, DType::bf16);
    EXPECT_EQ(config.trainer.device, DeviceType::cuda);
    EXPECT_FALSE(config.checkpoint.resume);
    EXPECT_EQ(config.optimizer.learning_rate, 1e-3);
    EXPECT_EQ(config.optimizer.final_learning_rate(), 0.1 * 1e-3);
    EXPECT_EQ(config.checkpoint_folder(), "runs/a/checkpoints");
}

TEST(Config, FamilySetsDefaultsAndSingleKeysStandAboveThem) {
    const Config tnl3 = parse_config("model: {norm: rmsnorm, family: tnl3}", "a.yaml");
    EXPECT_EQ(tnl3.model.gate, Gate::sigmoid);
    EXPECT_EQ(tnl3.model.norm, Norm::rmsnorm);
    EXPECT_EQ(tnl3.model.v_activation(), Activation::silu);
    const Config transformer = parse_config("", "a.yaml", {"model.family=transformer"});
    EXPECT_EQ(transformer.model.mixer, std::vector<Mixer>{Mixer::softmax});
    EXPECT_EQ(transformer.model.position, Position::rope);
    EXPECT_EQ(transformer.model.glu_activation, Activation::silu);
    EXPECT_FALSE(transformer.model.scale_embedding);
}

TEST(Config, OverridesComeLastAndTheLastOneWins) {
    const Config config =
        parse_config("trainer: {steps: 5}\ndata: {train: a, validation: v}", "a.yaml",
                     {"trainer.steps=6", "trainer.steps=7", "data.train=b",
                      "data.validation=", "model.mixer=[lightning, softmax]", "run.folder=runs/a: b #1"});
    EXPECT_EQ(config.trainer.steps, 7);
    EXPECT_EQ(config.data.train, (std::vector<DataSource>{{"b", 0}}));
    EXPECT_TRUE(config.data.validation.empty());
    EXPECT_EQ(config.model.mixer.size(), 2u);
    EXPECT_EQ(config.run.folder, "runs/a: b #1");
    const Config list = parse_config("", "a.yaml", {"data.train=[a, {prefix: b, weight: 3}]"});
    EXPECT_EQ(list.data.train, (std::vector<DataSource>{{"a", 0}, {"b", 3.0}}));
}

// Equal weights are equal shares of the samples; without weights larger shards have larger ones.
TEST(Config, WeightsThatAreGivenCount) {
    const auto specs = [](const std::string& sources) {
        const Config config = parse_config("data: {train: " + sources + "}", "a.yaml");
        EXPECT_EQ(parse_config(to_yaml(config), "back.yaml"), config);
        return dataset_specs(config.data.train);
    };
    EXPECT_EQ(specs("[a, b]"), (std::vector<std::string>{"a", "b"}));
    EXPECT_EQ(specs("[{prefix: a, weight: 1}, {prefix: b, weight: 1}]"),
              (std::vector<std::string>{"1 a", "1 b"}));
    EXPECT_EQ(specs("[a, {prefix: b, weight: 3}]"), (std::vector<std::string>{"1 a", "3 b"}));
}

TEST(Config, BaseFilesStandBelow) {
    const TemporaryFolder folder;
    folder.write("shared/deep.yaml", "trainer: {steps: 1, seed: 1, log_every: 1}");
    folder.write("shared/low.yaml", "base: deep.yaml\ntrainer: {steps: 2, seed: 2}");
    folder.write("other.yaml", "trainer.seed: 3\n");
    const std::string top =
        folder.write("top.yaml", "base: [shared/low.yaml, other.yaml]\ntrainer:\n  steps: 4\n");
    const Config config = load_config(top);
    EXPECT_EQ(config.trainer.log_every, 1);
    EXPECT_EQ(config.trainer.seed, 3);
    EXPECT_EQ(config.trainer.steps, 4);
}

TEST(Config, WrittenBackItReadsTheSame) {
    Config config = parse_config(R"(
run: {folder: "runs/\"quoted\" \\ #1", name: "ünï, [x]: {y}"}
model: {family: tnl3, lrpe_layers: [1, 3], mixer: [lightning, lightning, softmax], norm_eps: 1.0000000000000002e-5}
data: {train: [{prefix: "a b", weight: 0.1}, c], validation: d}
optimizer: {learning_rate: 0.00012345678901234567, min_learning_rate: 1e-9}
trainer: {precision: f64, z_loss: 1e-4, clip_grad_norm: 0}
checkpoint: {resume: none, folder: /x}
)",
                                 "a.yaml");
    const std::string text = to_yaml(config);
    EXPECT_EQ(parse_config(text, "back.yaml"), config) << text;
    EXPECT_EQ(to_yaml(parse_config(text, "back.yaml")), text);
    for (const Family family : {Family::tnl, Family::tnl3, Family::transformer}) {
        Config of;
        of.model = ModelConfig::of(family);
        EXPECT_EQ(parse_config(to_yaml(of), "family.yaml"), of);
        EXPECT_EQ(parse_config(to_yaml(of.model), "model.yaml").model, of.model);
    }
}

TEST(Config, EveryExampleInTheSchemaWorks) {
    for (const SchemaKey& key : schema()) {
        Config config;
        const ConfigValue value{
            .node = YAML::Load(key.example), .key = key.path(), .file = "", .where = key.path()};
        EXPECT_NO_THROW(key.read(config, value)) << key.path() << " " << key.example;
    }
}

TEST(Config, WarmUpMayBeLongerThanTheRun) {
    EXPECT_EQ(
        parse_config("{schedule: {warmup_steps: 50}, trainer: {steps: 3}}", "a.yaml").schedule.warmup_steps,
        50);
}

TEST(Config, EveryFileInTheFolderLoadsWithTheRightNumberOfParameters) {
    const std::map<std::string, int64_t> published = {
        {"tnl-385m.yaml", 398984192},         {"tnl-1b.yaml", 1020266496},
        {"tnl-3b.yaml", 2911111680},          {"tnl-7b.yaml", 6836719616},
        {"tnl3-15b.yaml", 14833382400},       {"tnl-13b.yaml", 12690396160},
        {"tnl-65b.yaml", 63640182784},        {"tnl-175b.yaml", 173524660224},
        {"transformer-385m.yaml", 399561728}, {"tnl-44m.yaml", 44213248},
        {"transformer-44m.yaml", 44777472},   {"transformer-1b.yaml", 1004607488},
    };
    size_t found = 0, files = 0;
    for (const auto& entry : fs::recursive_directory_iterator(source_folder() + "/configs")) {
        if (entry.path().extension() != ".yaml") continue;
        ++files;
        Config config;
        ASSERT_NO_THROW(config = load_config(entry.path().string())) << entry.path();
        if (const auto model = published.find(entry.path().filename().string()); model != published.end()) {
            EXPECT_EQ(config.model.parameter_count(), model->second) << entry.path();
            ++found;
        }
    }
    EXPECT_EQ(found, published.size());
    EXPECT_GE(files, published.size() + 3);
}

TEST(Config, TinyAndQuickstartHaveThePromisedSizes) {
    const Config tiny = load_config(source_folder() + "/configs/tiny.yaml");
    EXPECT_NEAR(static_cast<double>(tiny.model.parameter_count()), 0.3e6, 0.05e6);
    EXPECT_EQ(tiny.model.num_layers, 4);
    EXPECT_EQ(tiny.model.num_heads, 4);
    const Config quickstart = load_config(source_folder() + "/configs/quickstart.yaml");
    EXPECT_GE(quickstart.model.parameter_count(), 1500000);
}

TEST(Config, AblationStandsOnItsBase) {
    const std::string folder = source_folder() + "/configs/";
    const Config base = load_config(folder + "quickstart.yaml"),
                 ablation = load_config(folder + "ablation.yaml");
    EXPECT_EQ(ablation.model.hidden_size, base.model.hidden_size);
    EXPECT_EQ(ablation.trainer, base.trainer);
    EXPECT_NE(ablation.model, base.model);
}

TEST(Config, TheDocumentIsUpToDate) {
    EXPECT_TRUE(read_text(source_folder() + "/docs/config.md") == config_markdown())
        << "run: levin config docs > docs/config.md";
}

TEST(Config, DerivedSizes) {
    ModelConfig model;
    for (const auto& [width, glu] : {std::pair<int64_t, int64_t>{64, 256},
                                     {96, 256},
                                     {97, 512},
                                     {1024, 2816},
                                     {2048, 5632},
                                     {2560, 6912},
                                     {4096, 11008},
                                     {5120, 13824},
                                     {8192, 22016},
                                     {12288, 32768}}) {
        model.hidden_size = width;
        EXPECT_EQ(model.glu_width(), glu) << width;
    }
    model.glu_dim = -1;
    EXPECT_EQ(model.glu_width(), model.hidden_size);
    EXPECT_EQ(model.norm_epsilon(), 1e-6);
    model.norm = Norm::layernorm;
    EXPECT_EQ(model.norm_epsilon(), 1e-5);
}

TEST(Config, ParametersOfEverySwitchAreCounted) {
    const auto count = [](const std::string& extra) {
        return parse_config(
                   "model: {vocab_size: 10, hidden_size: 4, num_layers: 1, num_heads: 2, glu_dim: 3, " +
                       extra + "}",
                   "a.yaml")
            .model.parameter_count();
    };
    // embedding 40, qkvu 64, out 16, GLU 36, theta 4
    EXPECT_EQ(count("bias: false"), 160);
    EXPECT_EQ(count("lrpe_layers: none"), 156);
    EXPECT_EQ(count("tie_embeddings: false"), 200);
    EXPECT_EQ(count("norm: rmsnorm"), 160 + 4 * 4);    // two block norms, attention norm, final norm
    EXPECT_EQ(count("norm: layernorm"), 160 + 8 * 4);  // weight and bias
    EXPECT_EQ(count("bias: true"), 160 + 16 + 4 + 3 + 3 + 4);
    EXPECT_EQ(count("gate: none"), 144);
    EXPECT_EQ(count("gate: sigmoid, gate_dim: 5"), 144 + 2 * 4 * 5);
    EXPECT_EQ(count("position: absolute, max_position: 2000"), 156 + 8000);
    EXPECT_EQ(count("mixer: softmax"), 40 + 48 + 16 + 36);
    EXPECT_EQ(count("mixer: softmax, num_kv_heads: 1"), 40 + 32 + 16 + 36);
    // forward products of the first: 2 (64 + 16 + 36 + 40) + per head 4 * (2*2) * 2 with LRPE
    const auto model =
        parse_config("model: {vocab_size: 10, hidden_size: 4, num_layers: 1, num_heads: 2, glu_dim: 3}",
                     "a.yaml")
            .model;
    EXPECT_EQ(model.flops_per_token(7), 3 * (2 * 156 + 2 * 4 * 8));
}

}  // namespace
}  // namespace levin
