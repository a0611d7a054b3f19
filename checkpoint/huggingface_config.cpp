#include <algorithm>
#include <nlohmann/json.hpp>

#include "checkpoint/huggingface.h"
#include "kernels/base/error.h"

namespace levin {

namespace {

using Json = nlohmann::ordered_json;

// Activations of LlamaConfig.hidden_act that levin computes as well.
constexpr std::pair<std::string_view, Activation> kLlamaActivations[] = {
    {"silu", Activation::silu}, {"swish", Activation::silu},      {"gelu", Activation::gelu},
    {"relu", Activation::relu}, {"sigmoid", Activation::sigmoid}, {"linear", Activation::none}};

std::string torch_dtype(DType dtype) {
    return dtype == DType::bf16 ? "bfloat16" : dtype == DType::f64 ? "float64" : "float32";
}

Json token_or_null(int64_t id) { return id < 0 ? Json(nullptr) : Json(id); }

bool any_layer(const ModelConfig& config, Mixer mixer) {
    for (int64_t i = 0; i < config.num_layers; ++i)
        if (config.mixer_of(i) == mixer) return true;
    return false;
}

Json llama_json(const ModelConfig& config, DType dtype) {
    std::string activation = "silu";
    for (const auto& [name, value] : kLlamaActivations)
        if (value == config.glu_activation && value != Activation::silu) activation = name;
    return {{"architectures", {"LlamaForCausalLM"}},
            {"attention_bias", config.bias},
            {"attention_dropout", 0.0},
            {"bos_token_id", token_or_null(config.bos_token_id)},
            {"eos_token_id", token_or_null(config.eos_token_id)},
            {"head_dim", config.head_dim()},
            {"hidden_act", activation},
            {"hidden_size", config.hidden_size},
            {"initializer_range", config.init_std},
            {"intermediate_size", config.glu_width()},
            {"max_position_embeddings", config.max_position},
            {"mlp_bias", config.bias},
            {"model_type", "llama"},
            {"num_attention_heads", config.num_heads},
            {"num_hidden_layers", config.num_layers},
            {"num_key_value_heads", config.kv_heads()},
            {"pad_token_id", token_or_null(config.pad_token_id)},
            {"pretraining_tp", 1},
            {"rms_norm_eps", config.norm_epsilon()},
            {"rope_theta", config.rope_base},
            {"tie_word_embeddings", config.tie_embeddings},
            {"torch_dtype", torch_dtype(dtype)},
            {"use_cache", true},
            {"vocab_size", config.vocab_size}};
}

Json transnormer_json(const ModelConfig& config, DType dtype) {
    std::vector<int> lrpe;
    for (int64_t i = 0; i < config.num_layers; ++i) lrpe.push_back(config.uses_lrpe(i) ? 1 : 0);
    if (std::count(lrpe.begin(), lrpe.end(), 1) == 0) lrpe.clear();
    const bool lightning = any_layer(config, Mixer::lightning), softmax = any_layer(config, Mixer::softmax);
    const bool gate_dim = lightning && config.gate == Gate::sigmoid, act_on_v = config.family == Family::tnl3;
    Json json = {{"add_bos_token", false},
                 {"architectures", {"TransnormerForCausalLM"}},
                 {"auto_map",
                  {{"AutoConfig", "configuration_transnormer.TransnormerConfig"},
                   {"AutoModelForCausalLM", "modeling_transnormer.TransnormerForCausalLM"}}},
                 {"bias", config.bias},
                 {"bos_token_id", token_or_null(config.bos_token_id)},
                 {"decoder_attention_heads", config.num_heads},
                 {"decoder_embed_dim", config.hidden_size},
                 {"decoder_layers", config.num_layers},
                 {"eos_token_id", token_or_null(config.eos_token_id)}};
    if (gate_dim) json["gate_dim"] = config.gate_dim;
    json["glu_dim"] = config.glu_width();
    json["hidden_dim"] = config.hidden_size;
    json["init_std"] = config.init_std;
    json["linear_act_fun"] = enum_name(config.qk_activation);
    json["linear_use_lrpe_list"] = lrpe;
    json["model_type"] = "transnormer";
    json["no_scale_embedding"] = !config.scale_embedding;
    json["norm_type"] = enum_name(config.norm);
    json["pad_token_id"] = token_or_null(config.pad_token_id);
    json["tie_word_embeddings"] = config.tie_embeddings;
    json["torch_dtype"] = torch_dtype(dtype);
    json["use_cache"] = true;
    json["vocab_size"] = config.vocab_size;
    // Beyond the published keys.
    if (lightning && act_on_v != gate_dim) json["linear_act_on_v"] = act_on_v;
    if (lightning && config.gate == Gate::none) json["gate"] = "none";
    if (lightning && config.decay != Decay::alibi) json["decay"] = enum_name(config.decay);
    if (config.glu_activation != Activation::none) json["glu_act_fun"] = enum_name(config.glu_activation);
    const double default_eps = config.norm == Norm::layernorm ? 1e-5 : 1e-6;
    if (config.norm_epsilon() != default_eps) json["norm_eps"] = config.norm_epsilon();
    if (softmax) {
        Json mixers = Json::array();
        for (int64_t i = 0; i < config.num_layers; ++i) mixers.push_back(enum_name(config.mixer_of(i)));
        json["mixer"] = mixers;
        json["num_key_value_heads"] = config.kv_heads();
        json["rope_theta"] = config.rope_base;
        json["position"] = config.position == Position::lrpe ? "rope" : enum_name(config.position);
    }
    if (config.position == Position::absolute) {
        json["position"] = "absolute";
        json["max_position_embeddings"] = config.max_position;
    }
    return json;
}

// Typed access to the keys of a config.json.
class Reader {
public:
    Reader(std::string_view text, const std::string& where)
        : where_(where), json_(nlohmann::json::parse(text, nullptr, false)) {
        LEVIN_REQUIRE(json_.is_object(), where_, "is no JSON object");
    }

    bool has(const char* key) const { return json_.contains(key) && !json_[key].is_null(); }
    bool is_null(const char* key) const { return json_.contains(key) && json_[key].is_null(); }

    int64_t integer(const char* key) const {
        const auto& value = at(key);
        LEVIN_REQUIRE(
            value.is_number_integer() && value >= -(int64_t{1} << 40) && value <= (int64_t{1} << 40), where_,
            "{} is {}; expected a whole number", key, value.dump());
        return value.get<int64_t>();
    }
    int64_t integer(const char* key, int64_t fallback) const { return has(key) ? integer(key) : fallback; }
    double number(const char* key, double fallback) const {
        if (!has(key)) return fallback;
        LEVIN_REQUIRE(at(key).is_number(), where_, "{} is {}; expected a number", key, at(key).dump());
        return at(key).get<double>();
    }
    bool boolean(const char* key, bool fallback) const {
        if (!has(key)) return fallback;
        LEVIN_REQUIRE(at(key).is_boolean(), where_, "{} is {}; expected true or false", key, at(key).dump());
        return at(key).get<bool>();
    }
    std::string text(const char* key, const std::string& fallback) const {
        if (!has(key)) return fallback;
        LEVIN_REQUIRE(at(key).is_string(), where_, "{} is {}; expected text", key, at(key).dump());
        return at(key).get<std::string>();
    }
    template <class E>
    E choice(const char* key, E fallback) const {
        if (!has(key)) return fallback;
        return named<E>(key, text(key, ""));
    }
    template <class E>
    E named(const char* key, const std::string& name) const {
        E value{};
        if (enum_from_name<E>(name, value)) return value;
        std::string known;
        for (const auto& entry : enum_names<E>())
            known += (known.empty() ? "" : ", ") + std::string(entry.name);
        fail(Fault::input, where_, "{} is '{}', which levin does not know; expected one of {}", key, name,
             known);
    }
    // A token id: null or missing from the file means `absent`; of a list the first.
    int64_t token(const char* key, int64_t absent) const {
        if (is_null(key)) return -1;
        if (!has(key)) return absent;
        const auto& value = at(key);
        if (value.is_array() && !value.empty() && value[0].is_number_integer())
            return value[0].get<int64_t>();
        return integer(key);
    }
    const nlohmann::json& at(const char* key) const {
        LEVIN_REQUIRE(has(key), where_, "lacks the key '{}'", key);
        return json_[key];
    }
    const std::string& where() const { return where_; }

private:
    std::string where_;
    nlohmann::json json_;
};

ModelConfig read_llama(const Reader& json) {
    ModelConfig config = ModelConfig::of(Family::transformer);
    config.vocab_size = json.integer("vocab_size");
    config.hidden_size = json.integer("hidden_size");
    config.num_layers = json.integer("num_hidden_layers");
    config.num_heads = json.integer("num_attention_heads");
    config.num_kv_heads = json.integer("num_key_value_heads", config.num_heads);
    config.glu_dim = json.integer("intermediate_size");
    config.max_position = json.integer("max_position_embeddings", 2048);
    config.norm_eps = json.number("rms_norm_eps", 1e-6);
    config.init_std = json.number("initializer_range", 0.02);
    config.tie_embeddings = json.boolean("tie_word_embeddings", false);
    config.bos_token_id = json.token("bos_token_id", 1);
    config.eos_token_id = json.token("eos_token_id", 2);
    config.pad_token_id = json.token("pad_token_id", -1);
    config.bias = json.boolean("attention_bias", false);
    LEVIN_REQUIRE(json.boolean("mlp_bias", false) == config.bias, json.where(),
                  "attention_bias is {} and mlp_bias is not the same; levin has one switch for both",
                  config.bias);
    if (config.num_heads > 0)
        LEVIN_REQUIRE(json.integer("head_dim", config.head_dim()) == config.head_dim(), json.where(),
                      "head_dim is {}; levin needs hidden_size / num_attention_heads = {}",
                      json.integer("head_dim"), config.head_dim());
    config.rope_base = json.number("rope_theta", 10000.0);
    for (const char* key : {"rope_scaling", "rope_parameters"}) {
        if (!json.has(key)) continue;
        const auto& rope = json.at(key);
        const std::string type =
            rope.is_object() ? rope.value("rope_type", rope.value("type", "default")) : "?";
        LEVIN_REQUIRE(type == "default", json.where(), "{} is {}; levin knows RoPE without scaling only", key,
                      rope.dump());
        if (rope.contains("rope_theta") && rope["rope_theta"].is_number())
            config.rope_base = rope["rope_theta"];
    }
    const std::string activation = json.text("hidden_act", "silu");
    const auto* found = std::find_if(std::begin(kLlamaActivations), std::end(kLlamaActivations),
                                     [&](const auto& entry) { return entry.first == activation; });
    LEVIN_REQUIRE(
        found != std::end(kLlamaActivations), json.where(),
        "hidden_act is '{}', which levin does not know; expected silu, gelu, relu, sigmoid or linear",
        activation);
    config.glu_activation = found->second;
    return config;
}

void read_lrpe_list(const Reader& json, ModelConfig& config) {
    config.lrpe_layers = LrpeLayers::none;
    if (!json.has("linear_use_lrpe_list")) return;
    const auto& list = json.at("linear_use_lrpe_list");
    LEVIN_REQUIRE(list.is_array() && (list.empty() || static_cast<int64_t>(list.size()) == config.num_layers),
                  json.where(),
                  "linear_use_lrpe_list has {} entries; expected none, or one for each of {} layers",
                  list.size(), config.num_layers);
    for (size_t i = 0; i < list.size(); ++i) {
        const bool flag = list[i].is_boolean();
        LEVIN_REQUIRE(flag || (list[i].is_number_integer() && (list[i] == 0 || list[i] == 1)), json.where(),
                      "linear_use_lrpe_list[{}] is {}; expected 0 or 1", i, list[i].dump());
        if (flag ? list[i].get<bool>() : list[i] == 1) config.lrpe_list.push_back(static_cast<int64_t>(i));
    }
    if (config.lrpe_list.empty()) return;
    config.lrpe_layers = LrpeLayers::listed;
    if (config.lrpe_list == std::vector<int64_t>{0})
        config.lrpe_layers = LrpeLayers::first;
    else if (static_cast<int64_t>(config.lrpe_list.size()) == config.num_layers)
        config.lrpe_layers = LrpeLayers::all;
    if (config.lrpe_layers != LrpeLayers::listed) config.lrpe_list.clear();
}

void read_mixers(const Reader& json, ModelConfig& config) {
    if (!json.has("mixer")) return;
    const auto& list = json.at("mixer");
    LEVIN_REQUIRE(list.is_array() && !list.empty() && static_cast<int64_t>(list.size()) == config.num_layers,
                  json.where(), "mixer has {} entries; expected one for each of {} layers", list.size(),
                  config.num_layers);
    config.mixer.clear();
    for (const auto& name : list) {
        LEVIN_REQUIRE(name.is_string(), json.where(), "mixer holds {}; expected lightning or softmax",
                      name.dump());
        config.mixer.push_back(json.named<Mixer>("mixer", name.get<std::string>()));
    }
    // The shortest pattern that repeats to this list, as a configuration file would have it.
    for (size_t period = 1; period < config.mixer.size(); ++period) {
        bool repeats = true;
        for (size_t i = period; repeats && i < config.mixer.size(); ++i)
            repeats = config.mixer[i] == config.mixer[i - period];
        if (!repeats) continue;
        config.mixer.resize(period);
        break;
    }
}

ModelConfig read_transnormer(const Reader& json) {
    ModelConfig config;
    config.vocab_size = json.integer("vocab_size");
    config.hidden_size = json.integer("decoder_embed_dim");
    config.num_layers = json.integer("decoder_layers");
    config.num_heads = json.integer("decoder_attention_heads");
    LEVIN_REQUIRE(config.num_layers > 0 && config.num_layers <= 65536, json.where(),
                  "decoder_layers is {}; expected 1 to 65536", config.num_layers);
    config.glu_dim = json.integer("glu_dim");
    LEVIN_REQUIRE(json.integer("hidden_dim", config.hidden_size) == config.hidden_size, json.where(),
                  "hidden_dim is {}; levin needs it equal to decoder_embed_dim ({})",
                  json.integer("hidden_dim"), config.hidden_size);
    config.bias = json.boolean("bias", false);
    config.init_std = json.number("init_std", 0.02);
    config.scale_embedding = !json.boolean("no_scale_embedding", false);
    config.tie_embeddings = json.boolean("tie_word_embeddings", true);
    config.bos_token_id = json.token("bos_token_id", 1);
    config.eos_token_id = json.token("eos_token_id", 2);
    config.pad_token_id = json.token("pad_token_id", 0);
    config.qk_activation = json.choice("linear_act_fun", Activation::silu);
    const std::string norm = json.text("norm_type", "simplermsnorm");
    // The published code takes every name but simplermsnorm as LayerNorm; rmsnorm is levin's own addition.
    config.norm = norm == "simplermsnorm" ? Norm::simplermsnorm
                  : norm == "rmsnorm"     ? Norm::rmsnorm
                                          : Norm::layernorm;
    config.norm_eps = json.number("norm_eps", 0.0);
    const bool gate_dim = json.has("gate_dim");
    config.gate = gate_dim ? Gate::sigmoid : json.choice("gate", Gate::multiply);
    LEVIN_REQUIRE(config.gate != Gate::sigmoid || gate_dim, json.where(),
                  "gate is sigmoid, but gate_dim is missing");
    if (gate_dim) config.gate_dim = json.integer("gate_dim");
    config.family = json.boolean("linear_act_on_v", gate_dim) ? Family::tnl3 : Family::tnl;
    config.decay = json.choice("decay", Decay::alibi);
    config.glu_activation = json.choice("glu_act_fun", Activation::none);
    read_lrpe_list(json, config);
    read_mixers(json, config);
    config.num_kv_heads = json.integer("num_key_value_heads", 0);
    if (config.num_kv_heads == config.num_heads) config.num_kv_heads = 0;
    config.rope_base = json.number("rope_theta", 10000.0);
    config.max_position = json.integer("max_position_embeddings", 8192);
    const Position position = json.choice("position", Position::lrpe);
    // In a hybrid "rope" says how softmax layers know positions; a list of LRPE layers goes with it.
    const bool hybrid = position == Position::rope && any_layer(config, Mixer::lightning);
    config.position = hybrid ? Position::lrpe : position;
    return config;
}

}  // namespace

bool llama_can_express(const ModelConfig& config, std::string* reason) {
    const auto cannot = [&](const std::string& why) {
        if (reason) *reason = why;
        return false;
    };
    if (any_layer(config, Mixer::lightning)) return cannot("lightning layers");
    if (config.position != Position::rope && config.position != Position::lrpe)
        return cannot("position " + enum_name(config.position));
    if (config.norm != Norm::rmsnorm) return cannot("norm " + enum_name(config.norm));
    if (config.scale_embedding) return cannot("a scaled embedding");
    for (const auto& [name, activation] : kLlamaActivations)
        if (activation == config.glu_activation) return true;
    return cannot("GLU activation " + enum_name(config.glu_activation));
}

std::string model_config_to_json(const ModelConfig& config, DType dtype) {
    const bool llama = config.family == Family::transformer && llama_can_express(config);
    return (llama ? llama_json(config, dtype) : transnormer_json(config, dtype)).dump(2) + "\n";
}

ModelConfig model_config_from_json(std::string_view text, const std::string& where) {
    const Reader json(text, where);
    LEVIN_REQUIRE(!json.has("quantization_config"), where,
                  "has a quantization_config; levin reads weights in f32, bf16 or f16 only");
    const std::string type = json.text("model_type", "");
    LEVIN_REQUIRE(type == "transnormer" || type == "llama", where,
                  "model_type is '{}'; levin reads 'transnormer' (TNL, TNL3) and 'llama'", type);
    const ModelConfig config = type == "llama" ? read_llama(json) : read_transnormer(json);
    try {
        config.validate();
    } catch (const Error& error) {
        throw Error(Fault::input, where, error.what());
    }
    return config;
}

bool same_model(const ModelConfig& a, const ModelConfig& b) {
    return model_config_to_json(a) == model_config_to_json(b);
}

}  // namespace levin
