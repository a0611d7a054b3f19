#include "model/parameters.h"

#include <fmt/format.h>

#include <cmath>

#include "core/random.h"

namespace levin {

namespace {

class Table {
public:
    explicit Table(const ModelConfig& config) : c_(config) {}

    std::vector<ParameterSpec> build() {
        const bool llama = c_.family == Family::transformer;
        matrix("embedding", {"model.embed_tokens.weight"}, {c_.vocab_size}, c_.hidden_size, Sharding::rows);
        if (c_.position == Position::absolute)
            matrix("position_embedding", {"model.embed_positions.weight"}, {c_.max_position}, c_.hidden_size,
                   Sharding::replicated);
        for (layer_ = 0; layer_ < c_.num_layers; ++layer_) llama ? llama_layer() : tnl_layer();
        layer_ = -1;
        norm("final_norm", llama ? "model.norm" : "model.final_norm");
        if (!c_.tie_embeddings)
            matrix("head", {"lm_head.weight"}, {c_.vocab_size}, c_.hidden_size, Sharding::rows);
        return std::move(specs_);
    }

private:
    std::string here(const std::string& name) const { return fmt::format("layers.{}.{}", layer_, name); }
    std::string hf(const std::string& name) const { return fmt::format("model.layers.{}.{}", layer_, name); }

    // A linear of `pieces` stacked outputs; `segments` are what tensor parallelism divides on its own.
    void matrix(const std::string& name, const std::vector<std::string>& hf_names,
                const std::vector<int64_t>& rows, int64_t columns, Sharding sharding,
                std::vector<int64_t> segments = {}) {
        ParameterSpec spec;
        spec.name = name;
        int64_t total = 0;
        for (size_t i = 0; i < rows.size(); ++i) {
            spec.pieces.push_back({hf_names[i], {rows[i], columns}, rows[i]});
            total += rows[i];
        }
        spec.shape = {total, columns};
        spec.weight_decay = true;
        spec.sharding = sharding;
        spec.segments = segments.empty() ? rows : std::move(segments);
        spec.between_blocks = sharding == Sharding::replicated;
        spec.layer = layer_;
        specs_.push_back(std::move(spec));
    }
    void vector(const std::string& name, const std::vector<std::string>& hf_names,
                const std::vector<int64_t>& rows, Initialization initialization,
                Sharding sharding = Sharding::replicated, std::vector<int64_t> segments = {}) {
        ParameterSpec spec;
        spec.name = name;
        int64_t total = 0;
        for (size_t i = 0; i < rows.size(); ++i) {
            spec.pieces.push_back({hf_names[i], {rows[i]}, rows[i]});
            total += rows[i];
        }
        spec.shape = {total};
        spec.initialization = initialization;
        spec.sharding = sharding;
        spec.segments = segments.empty() ? rows : std::move(segments);
        spec.between_blocks = sharding == Sharding::replicated;
        spec.layer = layer_;
        specs_.push_back(std::move(spec));
    }
    // A linear and, with model.bias, its bias. The bias of a row-parallel linear is added once, so
    // replicated.
    void linear(const std::string& name, const std::vector<std::string>& hf_names,
                const std::vector<int64_t>& rows, int64_t columns, Sharding sharding,
                const std::vector<int64_t>& segments = {}) {
        std::vector<std::string> weights, biases;
        for (const auto& hf_name : hf_names) {
            weights.push_back(hf_name + ".weight");
            biases.push_back(hf_name + ".bias");
        }
        matrix(name, weights, rows, columns, sharding, segments);
        if (c_.bias)
            vector(name + "_bias", biases, rows, Initialization::zeros,
                   sharding == Sharding::rows ? Sharding::rows : Sharding::replicated, segments);
    }
    void norm(const std::string& name, const std::string& hf_name, bool between_blocks = true) {
        if (c_.norm == Norm::simplermsnorm) return;
        vector(name, {hf_name + ".weight"}, {c_.hidden_size}, Initialization::ones);
        specs_.back().between_blocks = between_blocks;
        if (c_.norm != Norm::layernorm) return;
        vector(name + "_bias", {hf_name + ".bias"}, {c_.hidden_size}, Initialization::zeros);
        specs_.back().between_blocks = between_blocks;
    }

    void tnl_layer() {
        const int64_t d = c_.hidden_size, f = c_.glu_width();
        const bool lightning = c_.mixer_of(layer_) == Mixer::lightning;
        norm(here("attention_norm"), hf("token_norm"));
        if (!lightning) {
            const int64_t kv = c_.kv_heads() * c_.head_dim();
            linear(here("attention.qkv"), {hf("token_mixer.qkv_proj")}, {d + 2 * kv}, d, Sharding::rows,
                   {d, kv, kv});
        } else if (c_.gate == Gate::multiply) {
            linear(here("attention.qkvu"), {hf("token_mixer.qkvu_proj")}, {4 * d}, d, Sharding::rows,
                   {d, d, d, d});
        } else {
            linear(here("attention.qkv"), {hf("token_mixer.qkv_proj")}, {3 * d}, d, Sharding::rows,
                   {d, d, d});
        }
        if (lightning && c_.gate == Gate::sigmoid) {
            linear(here("attention.gate_down"), {hf("token_mixer.output_gate.0")}, {c_.gate_dim}, d,
                   Sharding::replicated);
            linear(here("attention.gate_up"), {hf("token_mixer.output_gate.1")}, {d}, c_.gate_dim,
                   Sharding::rows);
        }
        if (c_.uses_lrpe(layer_)) {
            ParameterSpec theta;
            theta.name = here("attention.theta");
            theta.shape = {c_.num_heads, c_.head_dim()};
            theta.pieces = {{hf("token_mixer.lrpe.theta"), {c_.num_heads, 1, c_.head_dim()}, c_.num_heads}};
            theta.initialization = Initialization::lrpe_theta;
            theta.keep_accumulator = true;
            theta.sharding = Sharding::rows;
            theta.segments = {c_.num_heads};
            theta.layer = layer_;
            specs_.push_back(std::move(theta));
        }
        if (lightning) norm(here("attention.norm"), hf("token_mixer.norm"), false);
        linear(here("attention.out"), {hf("token_mixer.out_proj")}, {d}, d, Sharding::columns);
        norm(here("glu_norm"), hf("channel_norm"));
        linear(here("glu.in"), {hf("channel_mixer.l1"), hf("channel_mixer.l2")}, {f, f}, d, Sharding::rows);
        linear(here("glu.out"), {hf("channel_mixer.l3")}, {d}, f, Sharding::columns);
    }

    void llama_layer() {
        if (c_.mixer_of(layer_) == Mixer::lightning) return tnl_layer();
        const int64_t d = c_.hidden_size, f = c_.glu_width(), kv = c_.kv_heads() * c_.head_dim();
        norm(here("attention_norm"), hf("input_layernorm"));
        linear(here("attention.qkv"),
               {hf("self_attn.q_proj"), hf("self_attn.k_proj"), hf("self_attn.v_proj")}, {d, kv, kv}, d,
               Sharding::rows);
        linear(here("attention.out"), {hf("self_attn.o_proj")}, {d}, d, Sharding::columns);
        norm(here("glu_norm"), hf("post_attention_layernorm"));
        linear(here("glu.in"), {hf("mlp.gate_proj"), hf("mlp.up_proj")}, {f, f}, d, Sharding::rows);
        linear(here("glu.out"), {hf("mlp.down_proj")}, {d}, f, Sharding::columns);
    }

    const ModelConfig& c_;
    int64_t layer_ = -1;
    std::vector<ParameterSpec> specs_;
};

// The part is f32 or bf16.
void fill_part(const ModelConfig& config, const ParameterSpec& spec, uint64_t seed, int64_t axis,
               int64_t start, Tensor part) {
    switch (spec.initialization) {
        case Initialization::zeros:
            return part.fill(0);
        case Initialization::ones:
            return part.fill(1);
        case Initialization::normal: {
            const bool vector = spec.shape.size() == 1;
            const int64_t row = vector ? 1 : spec.shape[1];
            fill_normal(part, Random(seed, spec.name), config.init_std,
                        static_cast<uint64_t>(axis == 0 ? start * row : start), vector ? 0 : row);
            const int64_t pad = config.pad_token_id - (axis == 0 ? start : 0);
            if (spec.name == "embedding" && config.pad_token_id >= 0 && pad >= 0 && pad < part.dim(0))
                part.narrow(0, pad, 1).fill(0);
            return;
        }
        case Initialization::lrpe_theta: {  // 10000^(-2/D * arange(D)), D = heads * head_dim
            std::vector<float> theta(static_cast<size_t>(element_count(spec.shape)));
            for (size_t i = 0; i < theta.size(); ++i)
                theta[i] = static_cast<float>(
                    std::pow(10000.0, -2.0 * static_cast<double>(i) / static_cast<double>(theta.size())));
            return part.copy_from(Tensor::from(spec.shape, theta).narrow(axis, start, part.dim(axis)));
        }
    }
}

}  // namespace

std::vector<ParameterSpec> parameter_table(const ModelConfig& config) { return Table(config).build(); }

void set_initial_value(const ModelConfig& config, const ParameterSpec& spec, uint64_t seed, int64_t axis,
                       int64_t start, Tensor part) {
    if (part.dtype() != DType::f64) return fill_part(config, spec, seed, axis, start, part);
    const Tensor single =
        Tensor::empty(part.shape(), DType::f32, part.device());  // f64 holds the same numbers
    fill_part(config, spec, seed, axis, start, single);
    part.copy_from(single);
}

}  // namespace levin
