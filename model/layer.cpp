#include "model/layer.h"

#include "parallel/context_parallel/ops.h"
#include "parallel/tensor_parallel/ops.h"

namespace levin {

using namespace ops;

Variable apply_norm(const ModelConfig& config, const Variable& x, const NormParameters& parameters) {
    switch (config.norm) {
        case Norm::simplermsnorm:
            return srms_norm(x, config.norm_epsilon());
        case Norm::rmsnorm:
            return rms_norm(x, parameters.weight, config.norm_epsilon());
        case Norm::layernorm:
            break;
    }
    return layer_norm(x, parameters.weight, parameters.bias, config.norm_epsilon());
}

std::pair<Variable, Variable> add_and_norm(const ModelConfig& config, const Residual& stream,
                                           const NormParameters& parameters) {
    if (config.norm == Norm::simplermsnorm)
        return add_srms_norm(stream.h, stream.branch.get(), config.norm_epsilon());
    const Variable h = stream.whole();
    return {h, apply_norm(config, h, parameters)};
}

Variable Layer::into(const Variable& x, const Variable& weight, const Variable& bias,
                     const TokenLayout& layout, FirstColumns* first) const {
    return tp ? tensor_parallel::column_linear(x, weight, bias, tp.shares(layout.tokens()), first)
              : linear(x, weight, bias, first);
}

Layer::Arriving Layer::out_of(const Variable& y, const Variable& weight, const Variable& bias,
                              const TokenLayout& layout) const {
    if (tp) return tensor_parallel::row_linear(y, weight, bias, tp.shares(layout.tokens()));
    return linear(y, weight, bias);
}

Residual Layer::attention_block(const ModelConfig& config, const Residual& stream, const TokenLayout& layout,
                                LayerState* state) const {
    const auto [h, x] = add_and_norm(config, stream, attention_norm);
    return {h, attention(config, x, layout, state)};
}

Residual Layer::glu_block(const ModelConfig& config, const Residual& stream,
                          const TokenLayout& layout) const {
    const auto [h, x] = add_and_norm(config, stream, glu_norm);
    const auto halves = split(into(x, glu_in, glu_in_bias, layout), {glu_width, glu_width});
    return {h, out_of(glu(halves[0], halves[1], config.glu_activation), glu_out, glu_out_bias, layout)};
}

Layer::Arriving Layer::attention(const ModelConfig& config, const Variable& x, const TokenLayout& layout,
                                 LayerState* state) const {
    if (config.mixer_of(index) == Mixer::lightning) return lightning(config, x, layout, state);
    return out_of(softmax(config, x, layout, state), out, out_bias, layout);
}

Layer::Arriving Layer::lightning(const ModelConfig& config, const Variable& x, const TokenLayout& layout,
                                 LayerState* state) const {
    const int64_t d = heads * config.head_dim();
    const bool multiply_gate = config.gate == Gate::multiply;
    // Keys and values first: with context parallelism their state travels while queries and gate are formed.
    FirstColumns keys_and_values{d, 2 * d};
    const auto parts =
        split(into(x, in, in_bias, layout, layout.chunks ? &keys_and_values : nullptr),
              multiply_gate ? std::vector<int64_t>{d, d, d, d} : std::vector<int64_t>{d, d, d});
    Variable u;
    const auto form_gate = [&] {
        if (multiply_gate) u = parts[3];
        if (config.gate != Gate::sigmoid) return;
        Variable low = linear(x, gate_down, gate_down_bias);
        if (tp) low = tensor_parallel::enter(low, tp.shares(layout.tokens()));
        u = linear(low, gate_up, gate_up_bias);
    };
    LightningOptions options{.heads = heads,
                             .slopes = slopes,
                             .steepest = steepest,
                             .qk_activation = config.qk_activation,
                             .v_activation = config.v_activation(),
                             .theta = theta};
    if (state) {
        options.initial_state = state->kv;
        options.want_final_state = true;
    }
    LightningResult attended;
    if (layout.chunks) {
        attended =
            context_parallel::lightning_attention(parts[0], parts[1], parts[2], options, layout, cp, [&] {
                keys_and_values.form_rest();
                form_gate();
            });
    } else {
        attended = lightning_attention(parts[0], parts[1], parts[2], options, layout);
        form_gate();
    }
    if (state) state->kv = attended.final_state;
    const Variable o = attended.output;

    const Activation gate = multiply_gate ? Activation::none : Activation::sigmoid;
    if (tp && config.norm == Norm::simplermsnorm)  // the norm rides in the projection's sum
        return tensor_parallel::gated_norm_row_linear(o, u, gate, config.norm_epsilon(), config.hidden_size,
                                                      out, out_bias, tp.shares(layout.tokens()));
    if (u.defined() && config.norm == Norm::simplermsnorm)
        return linear(gated_srms_norm(o, u, gate, config.norm_epsilon()), out, out_bias);
    Variable y =
        tp ? tensor_parallel::take_columns(
                 apply_norm(config, tensor_parallel::gather_columns(o, tp.ranks), inner_norm), tp.ranks)
           : apply_norm(config, o, inner_norm);
    if (u.defined()) y = multiply(activation(u, gate), y);
    return out_of(y, out, out_bias, layout);
}

namespace {

// Appends rows to a cache that doubles its capacity; returns the filled part.
Tensor append(Tensor& cache, int64_t filled, const Tensor& rows) {
    const int64_t needed = filled + rows.dim(0);
    if (!cache.defined() || cache.dim(0) < needed) {
        Tensor larger = Tensor::empty({std::max<int64_t>(2 * filled, needed + 64), rows.dim(1)}, rows.dtype(),
                                      rows.device());
        if (filled > 0) larger.narrow(0, 0, filled).copy_from(cache.narrow(0, 0, filled));
        cache = larger;
    }
    cache.narrow(0, filled, rows.dim(0)).copy_from(rows);
    return cache.narrow(0, 0, needed);
}

}  // namespace

Variable Layer::softmax(const ModelConfig& config, const Variable& x, const TokenLayout& layout,
                        LayerState* state) const {
    const int64_t d = heads * config.head_dim(), kv = kv_heads * config.head_dim();
    const auto parts = split(into(x, in, in_bias, layout), {d, kv, kv});
    Variable q = parts[0], k = parts[1];
    if (config.uses_rope(index)) {
        q = rope(q, heads, config.rope_base, layout);
        k = rope(k, kv_heads, config.rope_base, layout);
    }
    if (layout.chunks)
        return context_parallel::softmax_attention(q, k, parts[2], heads, kv_heads, layout, cp);
    if (!state) return softmax_attention(q, k, parts[2], heads, kv_heads, layout);
    LEVIN_CHECK(layout.batch == 1, "decode", "the softmax cache holds one sequence, got {}", layout.batch);
    const Variable keys(append(state->keys, state->length, k.value()));
    const Variable values(append(state->values, state->length, parts[2].value()));
    state->length += layout.length;
    return softmax_attention(q, keys, values, heads, kv_heads, layout, state->length);
}

}  // namespace levin
