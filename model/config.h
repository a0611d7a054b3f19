// What a language model is made of: a plain struct, its checks and the sizes that follow from it.
// TransNormerLLM (TNL, arXiv 2307.14995 and 2405.17381), TNL3 and a LLaMA-style Transformer, with every
// ablation switch. A family is a set of defaults (ModelConfig::of); every other field may then be changed on
// its own.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/kernel.h"

namespace levin {

using kernels::Activation;

enum class Family { tnl, tnl3, transformer };
enum class Mixer { lightning, softmax };
// Slopes of the exponential decay of a lightning layer. alibi: the published code (slopes shrink with depth);
// alibi_no_temperature: the same slopes in every layer; paper: the formula of arXiv 2307.14995; none: no
// decay.
enum class Decay { alibi, alibi_no_temperature, paper, none };
// lrpe: lightning layers in lrpe_layers are rotated by learnt angles, softmax layers by RoPE. rope: only
// softmax layers, by RoPE. absolute: a learnt [max_position, hidden_size] table added to the embedding. none:
// decay alone.
enum class Position { lrpe, rope, absolute, none };
// Output gate of a lightning layer. multiply: u * norm(o), u from the projection (TNL); sigmoid: a low-rank
// gate sigmoid(x G0^T G1^T) * norm(o) (TNL3); none: norm(o). Softmax layers have neither gate nor norm, as in
// LLaMA.
enum class Gate { multiply, sigmoid, none };
enum class Norm { simplermsnorm, rmsnorm, layernorm };
enum class LrpeLayers { first, all, none, listed };

struct ModelConfig {
    Family family = Family::tnl;
    int64_t vocab_size = 256;
    int64_t hidden_size = 512;
    int64_t num_layers = 8;
    int64_t num_heads = 8;
    int64_t num_kv_heads = 0;                       // softmax layers; 0: num_heads
    int64_t glu_dim = 0;                            // 0: ceil(8 hidden_size / 3 / 256) * 256; -1: hidden_size
    int64_t gate_dim = 16;                          // rank of the sigmoid gate
    std::vector<Mixer> mixer = {Mixer::lightning};  // a pattern repeated over the layers
    Decay decay = Decay::alibi;
    Position position = Position::lrpe;
    LrpeLayers lrpe_layers = LrpeLayers::first;
    std::vector<int64_t> lrpe_list;  // ascending layer numbers, used with LrpeLayers::listed
    double rope_base = 10000.0;
    int64_t max_position = 8192;  // position absolute: rows of the table
    Gate gate = Gate::multiply;
    Activation qk_activation = Activation::silu;  // lightning layers; TNL3 uses it for v too
    Norm norm = Norm::simplermsnorm;
    double norm_eps = 0.0;                         // 0: 1e-6, LayerNorm 1e-5
    Activation glu_activation = Activation::none;  // on the first factor of the GLU
    bool bias = false;                             // in every projection but the head
    bool tie_embeddings = true;
    bool scale_embedding = true;  // embedding times sqrt(hidden_size)
    double init_std = 0.02;
    int64_t bos_token_id = -1;  // -1: none
    int64_t eos_token_id = -1;
    int64_t pad_token_id = -1;

    // The defaults of a family.
    static ModelConfig of(Family family);

    // Throws Error(input) naming the key (model.<field>), its value and what would work.
    void validate() const;

    int64_t head_dim() const { return hidden_size / num_heads; }
    int64_t kv_heads() const { return num_kv_heads > 0 ? num_kv_heads : num_heads; }
    int64_t glu_width() const;
    double norm_epsilon() const;
    Mixer mixer_of(int64_t layer) const { return mixer[static_cast<size_t>(layer) % mixer.size()]; }
    // Does this layer rotate q and k by LRPE? Only a lightning layer does.
    bool uses_lrpe(int64_t layer) const;
    // Does this layer turn q and k by RoPE? Only a softmax layer does.
    bool uses_rope(int64_t layer) const;
    // Activation of v in a lightning layer: TNL3's qk_activation, else none.
    Activation v_activation() const { return family == Family::tnl3 ? qk_activation : Activation::none; }

    // Numbers in all parameters; a tied head counts once.
    int64_t parameter_count() const;
    // Floating-point operations of one training step per token: 3 x forward; a multiply-add counts 2. Matrix
    // products (the head, not the embedding lookup), a lightning layer's state update and query (4 key_width
    // head_dim per head), a softmax layer's scores and values over the causal half of `length`. The MFU is
    // this rate over the device's peak.
    double flops_per_token(int64_t length) const;

    bool operator==(const ModelConfig&) const = default;
};

// Names of an enum's values as configuration files write them. The first name of a value is the one written
// back; further ones are read as well (activation "swish" = "silu", "leak" = "leaky_relu").
template <class E>
struct EnumName {
    E value;
    std::string_view name;
};
template <class E>
std::span<const EnumName<E>> enum_names();
template <>
std::span<const EnumName<Family>> enum_names();
template <>
std::span<const EnumName<Mixer>> enum_names();
template <>
std::span<const EnumName<Decay>> enum_names();
template <>
std::span<const EnumName<Position>> enum_names();
template <>
std::span<const EnumName<Gate>> enum_names();
template <>
std::span<const EnumName<Norm>> enum_names();
template <>
std::span<const EnumName<Activation>> enum_names();

template <class E>
std::string enum_name(E value) {
    for (const auto& entry : enum_names<E>())
        if (entry.value == value) return std::string(entry.name);
    return "?";
}
// False when no value has this name.
template <class E>
bool enum_from_name(std::string_view name, E& value) {
    for (const auto& entry : enum_names<E>())
        if (entry.name == name) return value = entry.value, true;
    return false;
}

}  // namespace levin
