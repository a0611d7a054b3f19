// Lightning attention with everything fused on the tile: activations and LRPE of q and k, activation of v,
// packed documents, states in and out. Saved for backward: the raw projections (views), theta, the initial
// state. The output is not needed.
#include "core/ops/lightning_arguments.h"

namespace levin::ops {

LightningResult lightning_attention(const Variable& q, const Variable& k, const Variable& v,
                                    const LightningOptions& options, const TokenLayout& layout) {
    const OpScope scope("lightning_attention");
    const LightningTensors x{.q = q.value(),
                             .k = k.value(),
                             .v = v.value(),
                             .theta = options.theta.defined() ? options.theta.value() : Tensor{},
                             .slopes = options.slopes};
    const Tensor state = options.initial_state.defined() ? options.initial_state.value() : Tensor{};
    LEVIN_CHECK(!layout.cu_seqlens.defined() || layout.batch == 1, "lightning_attention",
                "packed documents in {} rows: there is one", layout.batch);
    LEVIN_CHECK(x.q.shape() == x.k.shape() && x.q.rows() == x.v.rows() && x.q.rows() == layout.tokens() &&
                    x.q.dim(-1) % options.heads == 0 && x.v.dim(-1) % options.heads == 0 &&
                    x.slopes.count() == options.heads,
                "lightning_attention", "q {}, k {}, v {} do not fit {} heads and {} tokens",
                to_string(x.q.shape()), to_string(x.k.shape()), to_string(x.v.shape()), options.heads,
                layout.tokens());

    const kernels::LightningShape shape = lightning_shape(x, options, layout);
    const DType acc = accumulator_of(x.q.dtype());
    const Shape state_shape{shape.sequences(), shape.heads, shape.key_width(), shape.value_dim};
    LEVIN_CHECK(!state.defined() || (state.shape() == state_shape && state.dtype() == acc),
                "lightning_attention", "initial state {} should be {}", to_string(state.shape()),
                to_string(state_shape));

    const Tensor o = Tensor::empty({layout.tokens(), x.v.dim(-1)}, x.q.dtype(), x.q.device());
    const Tensor final_state =
        options.want_final_state ? Tensor::empty(state_shape, acc, x.q.device()) : Tensor{};
    kernels::LightningForward forward = lightning_forward_of(shape, x, o, state, final_state, {});
    Tensor kept;  // states inside the sequences, a few thousandths of what the layer keeps
    if (gradients_enabled() && (q.requires_grad() || k.requires_grad() || v.requires_grad()))
        if (const int64_t count = kernels::lightning_states_to_keep(x.q.stream(), forward); count > 0) {
            kept = Tensor::empty({count}, DType::f32, x.q.device());
            forward.kept_states = kept.data<float>();
        }
    kernels::lightning_forward(x.q.stream(), forward);

    std::vector<Variable> inputs{q, k, v};
    if (x.theta.defined()) inputs.push_back(options.theta);
    if (state.defined()) inputs.push_back(options.initial_state);
    std::vector<Tensor> outputs{o};
    if (final_state.defined()) outputs.push_back(final_state);

    auto results = record(
        "lightning_attention", inputs, std::move(outputs),
        // x and cu_seqlens are captured to keep alive what `shape` points to.
        [shape, x, state, kept, cu_seqlens = layout.cu_seqlens](std::span<const Tensor> gradients,
                                                                Gradients& inputs) {
            const bool has_theta = x.theta.defined(), has_state = state.defined();
            // A parameter's memory may have moved since the forward pass (ZeRO).
            kernels::LightningShape now = shape;
            now.theta = data_or_null(x.theta);
            const Tensor d_o = gradients[0].defined()
                                   ? gradients[0].contiguous()
                                   : Tensor::zeros({x.q.rows(), x.v.dim(-1)}, x.v.dtype(), x.v.device());
            const Tensor d_final =
                gradients.size() > 1 && gradients[1].defined() ? gradients[1].contiguous() : Tensor{};
            LightningGradients d{
                .q = inputs.buffer(0), .k = inputs.buffer(1), .v = inputs.buffer(2), .theta = {}};
            if (has_theta) d.theta = Tensor::empty(x.theta.shape(), x.theta.dtype(), x.theta.device());
            Tensor d_initial;
            if (has_state) d_initial = Tensor::empty(state.shape(), state.dtype(), state.device());
            kernels::lightning_backward(
                x.q.stream(), lightning_backward_of(now, x, d_o, state, d_final, d, d_initial, kept));
            inputs.add(0, d.q);
            inputs.add(1, d.k);
            inputs.add(2, d.v);
            if (has_theta) inputs.add(3, d.theta);
            if (has_state) inputs.add(has_theta ? 4 : 3, d_initial);
        });
    return {results[0], results.size() > 1 ? results[1] : Variable{}};
}

}  // namespace levin::ops
