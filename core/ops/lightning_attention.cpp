// Lightning attention with everything fused on the tile: activations and LRPE of q and k, activation of v,
// packed documents, states in and out. Saved for backward: the raw projections (views), theta, the initial
// state. The output is not needed.
#include "kernels/lightning_attention.h"

#include "core/ops.h"

namespace levin::ops {

LightningResult lightning_attention(const Variable& q, const Variable& k, const Variable& v,
                                    const LightningOptions& options, const TokenLayout& layout) {
    const OpScope scope("lightning_attention");
    const Tensor qv = q.value(), kv = k.value(), vv = v.value();
    const Tensor theta = options.theta.defined() ? options.theta.value() : Tensor{};
    const Tensor state = options.initial_state.defined() ? options.initial_state.value() : Tensor{};
    const Tensor slopes = options.slopes, cu_seqlens = layout.cu_seqlens;
    LEVIN_CHECK(!cu_seqlens.defined() || layout.batch == 1, "lightning_attention",
                "packed documents in {} rows: there is one", layout.batch);
    LEVIN_CHECK(qv.shape() == kv.shape() && qv.rows() == vv.rows() && qv.rows() == layout.tokens() &&
                    qv.dim(-1) % options.heads == 0 && vv.dim(-1) % options.heads == 0 &&
                    slopes.count() == options.heads,
                "lightning_attention", "q {}, k {}, v {} do not fit {} heads and {} tokens",
                to_string(qv.shape()), to_string(kv.shape()), to_string(vv.shape()), options.heads,
                layout.tokens());

    kernels::LightningShape shape{.batch = layout.batch,
                                  .length = layout.length,
                                  .heads = options.heads,
                                  .key_dim = qv.dim(-1) / options.heads,
                                  .value_dim = vv.dim(-1) / options.heads,
                                  .dtype = qv.dtype(),
                                  .qk_activation = options.qk_activation,
                                  .v_activation = options.v_activation,
                                  .slopes = slopes.data<float>(),
                                  .theta = theta.defined() ? theta.data() : nullptr,
                                  .first_position = layout.first_position,
                                  .cu_seqlens = cu_seqlens.defined() ? cu_seqlens.data<int32_t>() : nullptr,
                                  .documents = cu_seqlens.defined() ? cu_seqlens.count() - 1 : 0,
                                  .steepest = options.steepest};
    const DType acc = accumulator_of(qv.dtype());
    const Shape state_shape{shape.sequences(), shape.heads, shape.key_width(), shape.value_dim};
    LEVIN_CHECK(!state.defined() || (state.shape() == state_shape && state.dtype() == acc),
                "lightning_attention", "initial state {} should be {}", to_string(state.shape()),
                to_string(state_shape));

    Tensor o = Tensor::empty({layout.tokens(), vv.dim(-1)}, qv.dtype(), qv.device());
    Tensor final_state = options.want_final_state ? Tensor::empty(state_shape, acc, qv.device()) : Tensor{};
    kernels::LightningForward forward{.shape = shape,
                                      .q = qv.data(),
                                      .q_stride = qv.row_stride(),
                                      .k = kv.data(),
                                      .k_stride = kv.row_stride(),
                                      .v = vv.data(),
                                      .v_stride = vv.row_stride(),
                                      .o = o.data(),
                                      .initial_state = state.defined() ? state.data() : nullptr,
                                      .final_state = final_state.defined() ? final_state.data() : nullptr};
    Tensor kept;  // states inside the sequences, a few thousandths of what the layer keeps
    if (gradients_enabled() && (q.requires_grad() || k.requires_grad() || v.requires_grad()))
        if (const int64_t count = kernels::lightning_states_to_keep(qv.stream(), forward); count > 0) {
            kept = Tensor::empty({count}, DType::f32, qv.device());
            forward.kept_states = kept.data<float>();
        }
    kernels::lightning_forward(qv.stream(), forward);

    std::vector<Variable> inputs{q, k, v};
    const bool has_theta = theta.defined(), has_state = state.defined();
    if (has_theta) inputs.push_back(options.theta);
    if (has_state) inputs.push_back(options.initial_state);
    std::vector<Tensor> outputs{o};
    if (final_state.defined()) outputs.push_back(final_state);

    auto results =
        record("lightning_attention", inputs, std::move(outputs),
               // slopes and cu_seqlens are captured to keep alive what `shape` points to.
               [shape, qv, kv, vv, theta, state, kept, slopes, cu_seqlens](std::span<const Tensor> gradients,
                                                                           Gradients& inputs) {
                   const bool has_theta = theta.defined(), has_state = state.defined();
                   // A parameter's memory may have moved since the forward pass (ZeRO).
                   kernels::LightningShape now = shape;
                   if (has_theta) now.theta = theta.data();
                   const Tensor d_o = gradients[0].defined()
                                          ? gradients[0].contiguous()
                                          : Tensor::zeros({qv.rows(), vv.dim(-1)}, vv.dtype(), vv.device());
                   const Tensor d_final =
                       gradients.size() > 1 && gradients[1].defined() ? gradients[1].contiguous() : Tensor{};
                   Tensor dq = inputs.buffer(0), dk = inputs.buffer(1), dv = inputs.buffer(2);
                   Tensor d_initial;
                   if (has_state) d_initial = Tensor::empty(state.shape(), state.dtype(), state.device());
                   Tensor dtheta;
                   if (has_theta) dtheta = Tensor::empty(theta.shape(), theta.dtype(), theta.device());
                   kernels::lightning_backward(
                       qv.stream(), {.shape = now,
                                     .q = qv.data(),
                                     .q_stride = qv.row_stride(),
                                     .k = kv.data(),
                                     .k_stride = kv.row_stride(),
                                     .v = vv.data(),
                                     .v_stride = vv.row_stride(),
                                     .d_o = d_o.data(),
                                     .initial_state = has_state ? state.data() : nullptr,
                                     .d_final_state = d_final.defined() ? d_final.data() : nullptr,
                                     .dq = dq.data(),
                                     .dq_stride = dq.row_stride(),
                                     .dk = dk.data(),
                                     .dk_stride = dk.row_stride(),
                                     .dv = dv.data(),
                                     .dv_stride = dv.row_stride(),
                                     .dtheta = has_theta ? dtheta.data() : nullptr,
                                     .beta = 0,
                                     .d_initial_state = has_state ? d_initial.data() : nullptr,
                                     .kept_states = kept.defined() ? kept.data<float>() : nullptr});
                   inputs.add(0, dq);
                   inputs.add(1, dk);
                   inputs.add(2, dv);
                   if (has_theta) inputs.add(3, dtheta);
                   if (has_state) inputs.add(has_theta ? 4 : 3, d_initial);
               });
    return {results[0], results.size() > 1 ? results[1] : Variable{}};
}

}  // namespace levin::ops
