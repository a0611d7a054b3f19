#include "checkpoint/huggingface.h"

#include <nlohmann/json.hpp>

#include "checkpoint/native.h"
#include "model/parameters.h"
#include "tests/checkpoint/checkpoint_test.h"

namespace levin {
namespace {

namespace fs = std::filesystem;

class HuggingFace : public FolderTest {
protected:
    static ModelConfig small(Family family) {
        ModelConfig config = ModelConfig::of(family);
        config.hidden_size = 32;
        config.num_heads = 4;
        config.num_layers = 3;
        config.vocab_size = 50;
        config.glu_dim = 40;
        return config;
    }
    static MemoryParameters parameters(const ModelConfig& config, DType dtype) {
        std::map<std::string, Tensor> values;
        unsigned seed = 0;
        for (const auto& spec : parameter_table(config))
            values[spec.name] = sample(spec.shape, dtype, ++seed);
        return MemoryParameters(std::move(values));
    }
    // Both folders hold the same tensors to the bit.
    static void expect_same_tensors(const std::string& a, const std::string& b) {
        const SafetensorsReader left(a), right(b);
        EXPECT_EQ(std::set<std::string>(left.names().begin(), left.names().end()),
                  std::set<std::string>(right.names().begin(), right.names().end()));
        for (const auto& name : left.names())
            EXPECT_TRUE(same_bits(left.read(name), right.read(name))) << name << " of " << a << " and " << b;
    }
    void round_trip(const std::string& source, const std::string& name) {
        const std::string native = path(name + "-levin"), back = path(name + "-hf");
        import_model(load_model(source), native);
        const LoadedModel model = load_model(native);
        EXPECT_EQ(model.format, "levin");
        EXPECT_EQ(model.step, 0);
        ExportOptions options;
        options.dtype = model.dtype;
        options.tokenizer_files = model.tokenizer_files;
        export_hugging_face(model.config, *model.parameters, back, options);
        expect_same_tensors(source, back);
    }
};

TEST_F(HuggingFace, PublishedModelsComeBackToTheBit) {
    for (const std::string name :
         {"tnl-base", "tnl-6heads-noscale", "tnl-layernorm-1elu-untied", "tnl3-gate", "tnl-trajectory"}) {
        round_trip(golden(name), name);
        if (name == "tnl-trajectory") continue;
        // The numbers of the others are exact in bf16: nothing may be lost there either.
        const LoadedModel model = load_model(golden(name));
        ExportOptions options;
        options.dtype = DType::bf16;
        export_hugging_face(model.config, *model.parameters, path(name + "-bf16"), options);
        const SafetensorsReader narrow(path(name + "-bf16")), wide(golden(name));
        for (const auto& tensor : wide.names())
            EXPECT_TRUE(same_bits(narrow.read(tensor).to(DType::f32), wide.read(tensor))) << tensor;
        round_trip(path(name + "-bf16"), name + "-bf16");
        const auto config = nlohmann::json::parse(read_text_file(path(name + "-bf16-hf/config.json")));
        EXPECT_EQ(config["torch_dtype"], "bfloat16");
    }
}

TEST_F(HuggingFace, EveryFamilyComesBackToTheBit) {
    for (const DType dtype : {DType::f32, DType::bf16})
        for (int which = 0; which < 6; ++which) {
            ModelConfig config = small(which < 3    ? Family::transformer
                                       : which == 3 ? Family::tnl3
                                                    : Family::tnl);
            if (which == 1) config.num_kv_heads = 2, config.bias = true, config.tie_embeddings = false;
            if (which == 2) config.norm = Norm::simplermsnorm;  // no LLaMA
            if (which == 4) config.mixer = {Mixer::lightning, Mixer::softmax}, config.num_kv_heads = 1;
            if (which == 5)
                config.norm = Norm::layernorm, config.bias = true, config.position = Position::absolute;
            const std::string folder = path(fmt::format("model-{}-{}", which, to_string(dtype)));
            const MemoryParameters values = parameters(config, dtype);
            ExportOptions options;
            options.dtype = dtype;
            export_hugging_face(config, values, folder, options);
            const LoadedModel model = load_model(folder);
            EXPECT_EQ(model.dtype, dtype);
            for (const auto& spec : parameter_table(config))
                EXPECT_TRUE(same_bits(model.parameters->read(spec.name), values.read(spec.name)))
                    << spec.name << " of " << folder;
            round_trip(folder, fmt::format("trip-{}-{}", which, to_string(dtype)));
        }
}

TEST_F(HuggingFace, LlamaFolderHasTheNamesTransformersWants) {
    ModelConfig config = small(Family::transformer);
    config.num_kv_heads = 2;
    export_hugging_face(config, parameters(config, DType::f32), path("llama"), {});
    const auto json = nlohmann::json::parse(read_text_file(path("llama/config.json")));
    EXPECT_EQ(json["architectures"][0], "LlamaForCausalLM");
    EXPECT_EQ(json["num_key_value_heads"], 2);
    EXPECT_FALSE(json.contains("auto_map"));
    EXPECT_FALSE(fs::exists(path("llama/modeling_transnormer.py")));
    const SafetensorsReader tensors(path("llama"));
    EXPECT_EQ(tensors.shape("model.layers.2.self_attn.k_proj.weight"), (Shape{16, 32}));
    EXPECT_EQ(tensors.shape("model.layers.0.mlp.down_proj.weight"), (Shape{32, 40}));
    EXPECT_TRUE(tensors.contains("model.norm.weight"));
    EXPECT_FALSE(tensors.contains("lm_head.weight"));  // tied
    EXPECT_EQ(tensors.names().size(), 2u + 3 * 9);
}

TEST_F(HuggingFace, TransnormerFolderIsComplete) {
    const ModelConfig config = small(Family::tnl);
    put(path("tokenizer.json"), "{}");
    ExportOptions options;
    options.tokenizer_files = {path("tokenizer.json")};
    export_hugging_face(config, parameters(config, DType::f32), path("tnl"), options);
    for (const char* name : {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"})
        EXPECT_TRUE(fs::exists(path("tnl") + "/" + name)) << name;
    for (const char* name : {"configuration_transnormer.py", "modeling_transnormer.py"})
        EXPECT_EQ(read_text_file(path("tnl") + "/" + name),
                  read_text_file(source_file(std::string("checkpoint/remote_code/") + name)));
    // Names and shapes as published.
    const SafetensorsReader tensors(path("tnl"));
    EXPECT_EQ(tensors.shape("model.layers.0.token_mixer.lrpe.theta"), (Shape{4, 1, 8}));
    EXPECT_EQ(tensors.shape("model.layers.2.token_mixer.qkvu_proj.weight"), (Shape{128, 32}));
    EXPECT_EQ(load_model(path("tnl")).tokenizer_files, std::vector<std::string>{path("tnl/tokenizer.json")});
}

TEST_F(HuggingFace, AnglesKeepTheirPrecisionInBf16) {
    const ModelConfig config = small(Family::tnl);
    ExportOptions options;
    options.dtype = DType::bf16;
    export_hugging_face(config, parameters(config, DType::f32), path("a"), options);
    const SafetensorsReader tensors(path("a"));
    EXPECT_EQ(tensors.dtype("model.layers.0.token_mixer.lrpe.theta"), DType::f32);
    EXPECT_EQ(tensors.dtype("model.layers.0.token_mixer.qkvu_proj.weight"), DType::bf16);
    EXPECT_EQ(load_model(path("a")).dtype, DType::bf16);
}

TEST_F(HuggingFace, ShardedExportIsReadBack) {
    const LoadedModel model = load_model(golden("tnl-base"));
    ExportOptions options;
    options.shard_bytes = 300000;
    export_hugging_face(model.config, *model.parameters, path("sharded"), options);
    EXPECT_TRUE(fs::exists(path("sharded/model.safetensors.index.json")));
    EXPECT_FALSE(fs::exists(path("sharded/model.safetensors")));
    for (const auto& entry : fs::directory_iterator(path("sharded")))
        EXPECT_LT(fs::file_size(entry.path()), 310000u) << entry.path();
    expect_same_tensors(golden("tnl-base"), path("sharded"));
    round_trip(path("sharded"), "again");
}

TEST_F(HuggingFace, WrongTensorsAreNamed) {
    const SafetensorsReader original(golden("tnl-base"));
    const auto write = [&](const std::string& folder, const auto& change) {
        fs::create_directories(path(folder));
        fs::copy_file(golden("tnl-base") + "/config.json", path(folder) + "/config.json");
        std::map<std::string, Tensor> tensors;
        for (const auto& name : original.names()) tensors[name] = original.read(name);
        change(tensors);
        std::vector<TensorInfo> layout;
        std::vector<Tensor> values;
        for (const auto& [name, value] : tensors) {
            layout.push_back({name, value.dtype(), value.shape()});
            values.push_back(value);
        }
        write_safetensors_folder(path(folder), layout, kDefaultShardBytes,
                                 [&](size_t i) { return values[i]; });
        return path(folder);
    };
    const std::string key = "model.layers.1.channel_mixer.l3.weight";
    const auto reason = [&](const std::string& folder) { return refusal([&] { load_model(folder); }); };
    std::string message = reason(write("missing", [&](auto& tensors) { tensors.erase(key); }));
    EXPECT_NE(message.find("missing:\n  " + key), std::string::npos) << message;
    message =
        reason(write("extra", [&](auto& tensors) { tensors["stranger"] = sample({2}, DType::f32, 1); }));
    EXPECT_NE(message.find("stranger"), std::string::npos) << message;
    message = reason(write("shape", [&](auto& tensors) { tensors[key] = sample({2, 3}, DType::f32, 1); }));
    EXPECT_NE(message.find(key + ": [2, 3], expected [64, 256]"), std::string::npos) << message;
    message = reason(write("type", [&](auto& tensors) { tensors[key] = sample({64, 256}, DType::i32, 1); }));
    EXPECT_NE(message.find("i32"), std::string::npos) << message;
    // A tied head that was saved all the same is no stranger.
    load_model(write(
        "tied", [&](auto& tensors) { tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]; }));
}

TEST_F(HuggingFace, LoadModelFindsEveryKindOfFolder) {
    put(path("tokenizer.model"), "pieces");
    fs::create_directory(path("source"));
    for (const char* name : {"config.json", "model.safetensors"})
        fs::copy_file(golden("tnl-base") + "/" + name, path("source") + "/" + name);
    fs::copy_file(path("tokenizer.model"), path("source/tokenizer.model"));
    import_model(load_model(path("source")), path("run"));
    for (const char* place : {"run", "run/", "run/checkpoints", "run/checkpoints/step_00000000", "source"}) {
        const LoadedModel model = load_model(path(place));
        EXPECT_EQ(model.config.hidden_size, 64) << place;
        EXPECT_EQ(fs::path(find_file(model.tokenizer_files, "tokenizer.model")).filename(), "tokenizer.model")
            << place;
        EXPECT_EQ(find_file(model.tokenizer_files, "tokenizer.json"), "");
    }
    EXPECT_NE(refusal([&] { load_model(path("nowhere")); }).find("is no folder"), std::string::npos);
    fs::create_directory(path("empty"));
    EXPECT_NE(refusal([&] { load_model(path("empty")); }).find("looked for"), std::string::npos);
    // A damaged newest checkpoint: the older one, and a line about it.
    const Checkpoint good = Checkpoint::open(path("run/checkpoints/step_00000000"));
    CheckpointState state = good.state();
    state.step = 7;
    save_checkpoint(path("run/checkpoints"), state, {{kModelGroup, "embedding", sample({4}, DType::f32, 1)}});
    put(path("run/checkpoints/step_00000007/manifest"), "x");
    std::string log;
    EXPECT_EQ(load_model(path("run"), [&](const std::string& line) { log += line; }).step, 0);
    EXPECT_NE(log.find("step_00000007"), std::string::npos);
    // Weights of a run that went on must not be hidden behind converted ones.
    refusal([&] { import_model(load_model(path("source")), path("run")); });
}

}  // namespace
}  // namespace levin
