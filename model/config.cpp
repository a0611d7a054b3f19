#include "model/config.h"

#include <algorithm>

#include "kernels/base/error.h"

namespace levin {

#define LEVIN_ENUM_NAMES(E, ...)                              \
    template <>                                               \
    std::span<const EnumName<E>> enum_names() {               \
        static constexpr EnumName<E> names[] = {__VA_ARGS__}; \
        return names;                                         \
    }

LEVIN_ENUM_NAMES(Family, {Family::tnl, "tnl"}, {Family::tnl3, "tnl3"}, {Family::transformer, "transformer"})
LEVIN_ENUM_NAMES(Mixer, {Mixer::lightning, "lightning"}, {Mixer::softmax, "softmax"})
LEVIN_ENUM_NAMES(Decay, {Decay::alibi, "alibi"}, {Decay::alibi_no_temperature, "alibi-no-temperature"},
                 {Decay::paper, "paper"}, {Decay::none, "none"})
LEVIN_ENUM_NAMES(Position, {Position::lrpe, "lrpe"}, {Position::rope, "rope"},
                 {Position::absolute, "absolute"}, {Position::none, "none"})
LEVIN_ENUM_NAMES(Gate, {Gate::multiply, "multiply"}, {Gate::sigmoid, "sigmoid"}, {Gate::none, "none"})
LEVIN_ENUM_NAMES(Norm, {Norm::simplermsnorm, "simplermsnorm"}, {Norm::rmsnorm, "rmsnorm"},
                 {Norm::layernorm, "layernorm"})
LEVIN_ENUM_NAMES(Activation, {Activation::none, "none"}, {Activation::silu, "silu"},
                 {Activation::silu, "swish"}, {Activation::relu, "relu"}, {Activation::leaky_relu, "leak"},
                 {Activation::leaky_relu, "leaky_relu"}, {Activation::elu, "elu"},
                 {Activation::one_plus_elu, "1+elu"}, {Activation::two_plus_elu, "2+elu"},
                 {Activation::gelu, "gelu"}, {Activation::sigmoid, "sigmoid"}, {Activation::exp, "exp"},
                 {Activation::sine, "sine"})

ModelConfig ModelConfig::of(Family family) {
    ModelConfig config;
    config.family = family;
    if (family == Family::tnl3) config.gate = Gate::sigmoid;
    if (family == Family::transformer) {
        config.mixer = {Mixer::softmax};
        config.position = Position::rope;
        config.gate = Gate::none;
        config.norm = Norm::rmsnorm;
        config.glu_activation = Activation::silu;
        config.scale_embedding = false;
    }
    return config;
}

int64_t ModelConfig::glu_width() const {
    if (glu_dim == -1) return hidden_size;
    if (glu_dim > 0) return glu_dim;
    return (8 * hidden_size + 3 * 256 - 1) / (3 * 256) * 256;
}

double ModelConfig::norm_epsilon() const {
    if (norm_eps > 0) return norm_eps;
    return norm == Norm::layernorm ? 1e-5 : 1e-6;
}

bool ModelConfig::uses_lrpe(int64_t layer) const {
    if (position != Position::lrpe || mixer_of(layer) != Mixer::lightning) return false;
    switch (lrpe_layers) {
        case LrpeLayers::first:
            return layer == 0;
        case LrpeLayers::all:
            return true;
        case LrpeLayers::none:
            return false;
        case LrpeLayers::listed:
            return std::find(lrpe_list.begin(), lrpe_list.end(), layer) != lrpe_list.end();
    }
    return false;
}

bool ModelConfig::uses_rope(int64_t layer) const {
    return mixer_of(layer) == Mixer::softmax && (position == Position::rope || position == Position::lrpe);
}

void ModelConfig::validate() const {
    const std::string where = "config";
    // The upper ends are far beyond any model; they keep every product of sizes within 63 bits.
    const auto within = [&](const char* key, int64_t value, int64_t least, int64_t most) {
        LEVIN_REQUIRE(value >= least && value <= most, where, "model.{} is {}; expected {} to {}", key, value,
                      least, most);
    };
    within("vocab_size", vocab_size, 1, 1 << 26);
    within("hidden_size", hidden_size, 1, 1 << 20);
    within("num_layers", num_layers, 1, 10000);
    within("num_heads", num_heads, 1, 1 << 20);
    within("glu_dim", glu_dim, -1, 1 << 22);
    within("gate_dim", gate_dim, 1, 1 << 20);
    within("max_position", max_position, 1, 1 << 30);
    if (hidden_size % num_heads != 0) {
        int64_t below = num_heads, above = num_heads;
        while (hidden_size % below != 0) --below;
        while (hidden_size % above != 0 && above < hidden_size) ++above;
        if (above > hidden_size) above = below;
        fail(Fault::input, where,
             "model.num_heads is {} and model.hidden_size is {}: the heads must divide the width evenly. "
             "Nearest numbers of heads that do: {} and {}; or set model.hidden_size to {}",
             num_heads, hidden_size, below, above, (hidden_size / num_heads + 1) * num_heads);
    }
    LEVIN_REQUIRE(num_kv_heads >= 0 && num_kv_heads <= num_heads && num_heads % kv_heads() == 0, where,
                  "model.num_kv_heads is {}; it must divide model.num_heads ({}) or be 0 for as many",
                  num_kv_heads, num_heads);
    LEVIN_REQUIRE(!mixer.empty(), where,
                  "model.mixer is an empty list; expected lightning, softmax or a list of them");
    LEVIN_REQUIRE(
        static_cast<int64_t>(mixer.size()) <= num_layers, where,
        "model.mixer lists {} layers, model.num_layers is {}; a list is repeated over the layers and may not "
        "be longer",
        mixer.size(), num_layers);
    bool any_softmax = false, rope = false;
    for (int64_t i = 0; i < num_layers; ++i) {
        any_softmax |= mixer_of(i) == Mixer::softmax;
        rope |= uses_rope(i);
    }
    LEVIN_REQUIRE(
        position != Position::rope || any_softmax, where,
        "model.position is rope but no layer of model.mixer is softmax, and only those use RoPE; choose "
        "lrpe, absolute or none");
    LEVIN_REQUIRE(
        !rope || head_dim() % 2 == 0, where,
        "softmax layers turn pairs of channels by RoPE and need an even head width; hidden_size / num_heads "
        "is {}",
        head_dim());
    int64_t previous = -1;
    for (const int64_t layer : lrpe_list) {
        LEVIN_REQUIRE(layer > previous && layer < num_layers, where,
                      "model.lrpe_layers lists layer {}; expected ascending layer numbers from 0 to {}",
                      layer, num_layers - 1);
        previous = layer;
    }
    LEVIN_REQUIRE(glu_activation != Activation::exp, where,
                  "model.glu_activation is exp, which is defined over a head's width only; choose silu, none "
                  "or another");
    LEVIN_REQUIRE(norm_eps >= 0 && norm_eps < 1, where,
                  "model.norm_eps is {}; expected 0 (default) to below 1", norm_eps);
    LEVIN_REQUIRE(rope_base > 1, where, "model.rope_base is {}; it must be above 1", rope_base);
    LEVIN_REQUIRE(init_std >= 0 && init_std < 100, where, "model.init_std is {}; expected 0 to 100",
                  init_std);
    for (const auto& [key, id] :
         {std::pair{"bos", bos_token_id}, std::pair{"eos", eos_token_id}, std::pair{"pad", pad_token_id}})
        LEVIN_REQUIRE(id >= -1 && id < vocab_size, where,
                      "model.{}_token_id is {}; expected -1 for none, or an id below model.vocab_size ({})",
                      key, id, vocab_size);
}

namespace {

struct LayerCounts {
    int64_t matrices = 0, others = 0;  // numbers in matrices used by products; norm weights, biases, angles
    double attention_flops = 0;        // forward, per token
};

LayerCounts count_layer(const ModelConfig& c, int64_t layer, int64_t length) {
    const int64_t d = c.hidden_size, f = c.glu_width(), heads = c.num_heads, width = c.head_dim();
    const int64_t norm_numbers = c.norm == Norm::simplermsnorm ? 0 : c.norm == Norm::rmsnorm ? d : 2 * d;
    LayerCounts n;
    int64_t bias_numbers = d + 2 * f + d;  // attention output; GLU
    n.matrices = d * d + 3 * d * f;
    n.others = 2 * norm_numbers;
    if (c.mixer_of(layer) == Mixer::softmax) {
        const int64_t qkv = d + 2 * c.kv_heads() * width;
        n.matrices += d * qkv;
        bias_numbers += qkv;
        n.attention_flops = 2.0 * static_cast<double>(length) * static_cast<double>(d);
    } else {
        const int64_t projected = c.gate == Gate::multiply ? 4 * d : 3 * d;
        n.matrices += d * projected;
        bias_numbers += projected;
        if (c.gate == Gate::sigmoid) {
            n.matrices += 2 * d * c.gate_dim;
            bias_numbers += c.gate_dim + d;
        }
        n.others += norm_numbers;
        const bool lrpe = c.uses_lrpe(layer);
        if (lrpe) n.others += d;
        n.attention_flops = 4.0 * static_cast<double>(heads * (lrpe ? 2 * width : width) * width);
    }
    if (c.bias) n.others += bias_numbers;
    return n;
}

}  // namespace

int64_t ModelConfig::parameter_count() const {
    const int64_t d = hidden_size;
    int64_t total = vocab_size * d * (tie_embeddings ? 1 : 2);
    if (position == Position::absolute) total += max_position * d;
    total += norm == Norm::simplermsnorm ? 0 : norm == Norm::rmsnorm ? d : 2 * d;
    for (int64_t i = 0; i < num_layers; ++i) {
        const LayerCounts n = count_layer(*this, i, 0);
        total += n.matrices + n.others;
    }
    return total;
}

double ModelConfig::flops_per_token(int64_t length) const {
    double forward = 2.0 * static_cast<double>(vocab_size * hidden_size);
    for (int64_t i = 0; i < num_layers; ++i) {
        const LayerCounts n = count_layer(*this, i, length);
        forward += 2.0 * static_cast<double>(n.matrices) + n.attention_flops;
    }
    return 3.0 * forward;
}

}  // namespace levin
