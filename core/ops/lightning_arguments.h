// What the kernels of lightning attention are told, made of tensors: of a whole pass, and of the pieces of
// one that goes over ranks.
#pragma once

#include "core/ops.h"
#include "kernels/lightning_attention.h"

namespace levin::ops {

// Raw projections [tokens, heads * dim], and theta (undefined: no LRPE) and slopes of the heads.
struct LightningTensors {
    Tensor q, k, v, theta, slopes;
};
// Where backward writes: shaped as q, k, v and theta, dtheta (undefined: no LRPE) on top of beta times
// itself.
struct LightningGradients {
    Tensor q, k, v, theta;
    double beta = 0;
};

inline void* data_or_null(const Tensor& tensor) { return tensor.defined() ? tensor.data() : nullptr; }
inline float* floats_or_null(const Tensor& tensor) {
    return tensor.defined() ? tensor.data<float>() : nullptr;
}

inline kernels::LightningShape lightning_shape(const LightningTensors& x, const LightningOptions& options,
                                               const TokenLayout& layout) {
    return {.batch = layout.batch,
            .length = layout.length,
            .heads = options.heads,
            .key_dim = x.q.dim(-1) / options.heads,
            .value_dim = x.v.dim(-1) / options.heads,
            .dtype = x.q.dtype(),
            .qk_activation = options.qk_activation,
            .v_activation = options.v_activation,
            .slopes = x.slopes.data<float>(),
            .theta = data_or_null(x.theta),
            .first_position = layout.first_position,
            .cu_seqlens = layout.cu_seqlens.defined() ? layout.cu_seqlens.data<int32_t>() : nullptr,
            .documents = layout.cu_seqlens.defined() ? layout.cu_seqlens.count() - 1 : 0,
            .steepest = options.steepest};
}

// States may be undefined (initial: zero; final: not wanted), and so may `kept`, the states inside.
inline kernels::LightningForward lightning_forward_of(const kernels::LightningShape& shape,
                                                      const LightningTensors& x, const Tensor& o,
                                                      const Tensor& initial, const Tensor& final,
                                                      const Tensor& kept) {
    return {.shape = shape,
            .q = x.q.data(),
            .q_stride = x.q.row_stride(),
            .k = x.k.data(),
            .k_stride = x.k.row_stride(),
            .v = x.v.data(),
            .v_stride = x.v.row_stride(),
            .o = o.data(),
            .initial_state = data_or_null(initial),
            .final_state = data_or_null(final),
            .kept_states = floats_or_null(kept)};
}

// The same of gradients: d_final undefined: zero; d_initial undefined: not wanted.
inline kernels::LightningBackward lightning_backward_of(const kernels::LightningShape& shape,
                                                        const LightningTensors& x, const Tensor& d_o,
                                                        const Tensor& initial, const Tensor& d_final,
                                                        const LightningGradients& d, const Tensor& d_initial,
                                                        const Tensor& kept) {
    return {.shape = shape,
            .q = x.q.data(),
            .q_stride = x.q.row_stride(),
            .k = x.k.data(),
            .k_stride = x.k.row_stride(),
            .v = x.v.data(),
            .v_stride = x.v.row_stride(),
            .d_o = d_o.data(),
            .initial_state = data_or_null(initial),
            .d_final_state = data_or_null(d_final),
            .dq = d.q.data(),
            .dq_stride = d.q.row_stride(),
            .dk = d.k.data(),
            .dk_stride = d.k.row_stride(),
            .dv = d.v.data(),
            .dv_stride = d.v.row_stride(),
            .dtheta = data_or_null(d.theta),
            .beta = d.beta,
            .d_initial_state = data_or_null(d_initial),
            .kept_states = floats_or_null(kept)};
}

}  // namespace levin::ops
