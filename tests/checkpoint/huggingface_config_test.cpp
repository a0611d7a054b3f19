#include <nlohmann/json.hpp>

#include "checkpoint/huggingface.h"
#include "model/parameters.h"
#include "tests/checkpoint/checkpoint_test.h"

namespace levin {
namespace {

const char* const kGolden[] = {"tnl-base", "tnl-6heads-noscale", "tnl-layernorm-1elu-untied", "tnl3-gate",
                               "tnl-trajectory"};

nlohmann::json golden_json(const std::string& name) {
    return nlohmann::json::parse(read_text_file(golden(name) + "/config.json"));
}

TEST(HuggingFaceConfig, PublishedConfigsComeBackKeyForKey) {
    for (const std::string name : kGolden) {
        nlohmann::json original = golden_json(name);
        const ModelConfig config = model_config_from_json(original.dump(), name);
        auto written = nlohmann::json::parse(model_config_to_json(config));
        if (!original.contains("auto_map")) written.erase("auto_map");
        EXPECT_EQ(written, original) << name;
    }
}

TEST(HuggingFaceConfig, PublishedConfigsMeanWhatTheySay) {
    const ModelConfig base = model_config_from_json(golden_json("tnl-base").dump(), "tnl-base");
    EXPECT_EQ(base.family, Family::tnl);
    EXPECT_EQ(base.gate, Gate::multiply);
    EXPECT_TRUE(base.scale_embedding && base.tie_embeddings);
    EXPECT_TRUE(base.uses_lrpe(0));
    EXPECT_FALSE(base.uses_lrpe(1));
    const ModelConfig six = model_config_from_json(golden_json("tnl-6heads-noscale").dump(), "six");
    EXPECT_FALSE(six.scale_embedding);
    EXPECT_TRUE(six.uses_lrpe(0) && !six.uses_lrpe(1) && six.uses_lrpe(2));
    const ModelConfig layer =
        model_config_from_json(golden_json("tnl-layernorm-1elu-untied").dump(), "layer");
    EXPECT_EQ(layer.norm, Norm::layernorm);
    EXPECT_EQ(layer.qk_activation, Activation::one_plus_elu);
    EXPECT_FALSE(layer.tie_embeddings || layer.uses_lrpe(0));
    const ModelConfig gate = model_config_from_json(golden_json("tnl3-gate").dump(), "gate");
    EXPECT_EQ(gate.family, Family::tnl3);
    EXPECT_EQ(gate.gate, Gate::sigmoid);
    EXPECT_EQ(gate.gate_dim, 16);
    auto narrow = golden_json("tnl-base");
    narrow["glu_dim"] = -1;
    EXPECT_EQ(model_config_from_json(narrow.dump(), "glu").glu_width(), 64);
}

std::vector<ModelConfig> ablations() {
    std::vector<ModelConfig> list;
    const auto add = [&](Family family, const auto& change) {
        ModelConfig config = ModelConfig::of(family);
        config.hidden_size = 48;
        config.num_heads = 6;
        config.num_layers = 4;
        config.vocab_size = 99;
        change(config);
        config.validate();
        list.push_back(config);
    };
    for (const auto& entry : enum_names<Activation>())
        add(Family::tnl, [&](ModelConfig& c) { c.qk_activation = entry.value; });
    for (const auto& entry : enum_names<Decay>())
        add(Family::tnl, [&](ModelConfig& c) { c.decay = entry.value; });
    for (const auto& entry : enum_names<Norm>())
        for (const auto& gate : enum_names<Gate>())
            for (const Family family : {Family::tnl, Family::tnl3})
                add(family, [&](ModelConfig& c) {
                    c.norm = entry.value;
                    c.gate = gate.value;
                });
    for (const LrpeLayers which : {LrpeLayers::first, LrpeLayers::all, LrpeLayers::none})
        add(Family::tnl, [&](ModelConfig& c) { c.lrpe_layers = which; });
    add(Family::tnl, [](ModelConfig& c) { c.lrpe_layers = LrpeLayers::listed, c.lrpe_list = {1, 3}; });
    add(Family::tnl, [](ModelConfig& c) { c.position = Position::none; });
    add(Family::tnl, [](ModelConfig& c) { c.position = Position::absolute, c.max_position = 77; });
    add(Family::tnl, [](ModelConfig& c) { c.bias = true, c.norm_eps = 1e-4, c.tie_embeddings = false; });
    add(Family::tnl,
        [](ModelConfig& c) { c.glu_activation = Activation::silu, c.glu_dim = -1, c.pad_token_id = 3; });
    for (const Position position : {Position::lrpe, Position::rope, Position::none, Position::absolute})
        add(Family::tnl, [&](ModelConfig& c) {
            c.mixer = {Mixer::lightning, Mixer::softmax};
            c.position = position;
            c.num_kv_heads = 2;
            c.rope_base = 5e5;
        });
    add(Family::tnl3, [](ModelConfig& c) { c.mixer = {Mixer::lightning, Mixer::lightning, Mixer::softmax}; });
    add(Family::transformer, [](ModelConfig&) {});
    add(Family::transformer, [](ModelConfig& c) { c.num_kv_heads = 3, c.bias = true, c.rope_base = 1e6; });
    add(Family::transformer, [](ModelConfig& c) { c.norm = Norm::simplermsnorm; });
    add(Family::transformer, [](ModelConfig& c) { c.position = Position::absolute, c.norm_eps = 1e-5; });
    add(Family::transformer, [](ModelConfig& c) { c.glu_activation = Activation::sine; });
    return list;
}

TEST(HuggingFaceConfig, EveryOptionComesBack) {
    for (const ModelConfig& config : ablations()) {
        const std::string json = model_config_to_json(config);
        const ModelConfig back = model_config_from_json(json, "ablation");
        EXPECT_TRUE(same_model(config, back)) << json << model_config_to_json(back);
        EXPECT_EQ(config.parameter_count(), back.parameter_count()) << json;
        EXPECT_EQ(config.glu_width(), back.glu_width()) << json;
        EXPECT_EQ(config.norm_epsilon(), back.norm_epsilon()) << json;
        EXPECT_EQ(config.v_activation(), back.v_activation()) << json;
        EXPECT_EQ(config.qk_activation == back.qk_activation,
                  config.family != Family::transformer || config.qk_activation == back.qk_activation);
        EXPECT_EQ(config.glu_activation, back.glu_activation) << json;
        EXPECT_EQ(config.pad_token_id, back.pad_token_id) << json;
        EXPECT_EQ(config.scale_embedding, back.scale_embedding) << json;
        for (int64_t i = 0; i < config.num_layers; ++i) {
            EXPECT_EQ(config.mixer_of(i), back.mixer_of(i)) << json;
            EXPECT_EQ(config.uses_lrpe(i), back.uses_lrpe(i)) << json;
            EXPECT_EQ(config.uses_rope(i), back.uses_rope(i)) << json;
        }
        const auto table = parameter_table(config), table_back = parameter_table(back);
        ASSERT_EQ(table.size(), table_back.size()) << json;
        for (size_t i = 0; i < table.size(); ++i) {
            EXPECT_EQ(table[i].name, table_back[i].name) << json;
            EXPECT_EQ(table[i].shape, table_back[i].shape) << json;
        }
    }
}

TEST(HuggingFaceConfig, SameModelSeesMeaningNotSpelling) {
    ModelConfig base;
    base.hidden_size = 48;
    base.num_heads = 6;
    using Change = void (*)(ModelConfig&);
    for (const Change change :
         {+[](ModelConfig& c) { c.glu_dim = 256; }, +[](ModelConfig& c) { c.norm_eps = 1e-6; },
          +[](ModelConfig& c) { c.lrpe_layers = LrpeLayers::listed, c.lrpe_list = {0}; },
          +[](ModelConfig& c) {
              c.num_kv_heads = 2, c.rope_base = 5;
          },  // of softmax layers, of which it has none
          +[](ModelConfig& c) { c.gate_dim = 3; }}) {
        ModelConfig changed = base;
        change(changed);
        EXPECT_TRUE(same_model(base, changed)) << model_config_to_json(changed);
    }
    for (const Change change :
         {+[](ModelConfig& c) { c.vocab_size = 257; }, +[](ModelConfig& c) { c.num_heads = 8; },
          +[](ModelConfig& c) { c.glu_dim = -1; }, +[](ModelConfig& c) { c.gate = Gate::sigmoid; },
          +[](ModelConfig& c) { c.gate = Gate::none; }, +[](ModelConfig& c) { c.family = Family::tnl3; },
          +[](ModelConfig& c) { c.decay = Decay::paper; },
          +[](ModelConfig& c) { c.position = Position::none; },
          +[](ModelConfig& c) { c.lrpe_layers = LrpeLayers::all; },
          +[](ModelConfig& c) { c.norm_eps = 1e-5; }, +[](ModelConfig& c) { c.norm = Norm::rmsnorm; },
          +[](ModelConfig& c) { c.bias = true; }, +[](ModelConfig& c) { c.qk_activation = Activation::relu; },
          +[](ModelConfig& c) { c.glu_activation = Activation::silu; },
          +[](ModelConfig& c) { c.tie_embeddings = false; },
          +[](ModelConfig& c) { c.scale_embedding = false; }, +[](ModelConfig& c) { c.pad_token_id = 5; },
          +[](ModelConfig& c) { c.mixer = {Mixer::softmax}; }}) {
        ModelConfig changed = base;
        change(changed);
        EXPECT_FALSE(same_model(base, changed)) << model_config_to_json(changed);
    }
}

TEST(HuggingFaceConfig, WhatLevinDoesNotKnowIsRefusedByName) {
    const auto refused = [](const char* base, const std::string& key, const nlohmann::json& value) {
        nlohmann::json json =
            std::string(base) == "llama"
                ? nlohmann::json::parse(model_config_to_json(ModelConfig::of(Family::transformer)))
                : golden_json(base);
        if (value.is_discarded())
            json.erase(key);
        else
            json[key] = value;
        const std::string message =
            refusal([&] { model_config_from_json(json.dump(), "folder/config.json"); });
        EXPECT_NE(message.find("folder/config.json"), std::string::npos) << message;
        return message;
    };
    const nlohmann::json missing(nlohmann::json::value_t::discarded);
    EXPECT_NE(refused("tnl-base", "linear_act_fun", "mish").find("'mish'"), std::string::npos);
    EXPECT_NE(refused("tnl-base", "vocab_size", missing).find("vocab_size"), std::string::npos);
    EXPECT_NE(refused("tnl-base", "vocab_size", "512").find("vocab_size"), std::string::npos);
    EXPECT_NE(refused("tnl-base", "decoder_layers", 2e9).find("decoder_layers"), std::string::npos);
    EXPECT_NE(refused("tnl-base", "decoder_layers", int64_t{1} << 39).find("decoder_layers"),
              std::string::npos);
    EXPECT_NE(refused("tnl-base", "linear_use_lrpe_list", {1, 0}).find("linear_use_lrpe_list"),
              std::string::npos);
    EXPECT_NE(refused("tnl-base", "linear_use_lrpe_list", {1, 0, 0, 2}).find("linear_use_lrpe_list"),
              std::string::npos);
    EXPECT_NE(refused("tnl-base", "hidden_dim", 128).find("hidden_dim"), std::string::npos);
    EXPECT_NE(refused("tnl-base", "model_type", "gpt2").find("gpt2"), std::string::npos);
    EXPECT_NE(refused("tnl-base", "decoder_attention_heads", 5).find("heads"), std::string::npos);
    EXPECT_NE(refused("tnl-base", "mixer", {"lightning"}).find("mixer"), std::string::npos);
    EXPECT_NE(refused("tnl-base", "quantization_config", nlohmann::json::object()).find("quantization"),
              std::string::npos);
    EXPECT_NE(refused("llama", "rope_scaling", {{"rope_type", "llama3"}}).find("rope_scaling"),
              std::string::npos);
    EXPECT_NE(refused("llama", "hidden_act", "relu6").find("relu6"), std::string::npos);
    EXPECT_NE(refused("llama", "head_dim", 13).find("head_dim"), std::string::npos);
    EXPECT_NE(refused("llama", "mlp_bias", true).find("mlp_bias"), std::string::npos);
    EXPECT_NE(refused("llama", "num_attention_heads", 0).find("num_heads"), std::string::npos);
    refusal([] { model_config_from_json("{", "x"); });
    refusal([] { model_config_from_json("[]", "x"); });
}

}  // namespace
}  // namespace levin
