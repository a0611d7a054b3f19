// Causal softmax attention for the Transformer and hybrid layers. Saved for backward: q, k, v, o and the
// log-sum-exp.
#include "kernels/softmax_attention.h"

#include <cmath>

#include "core/ops.h"

namespace levin::ops {

Variable softmax_attention(const Variable& q, const Variable& k, const Variable& v, int64_t heads,
                           int64_t kv_heads, const TokenLayout& layout, int64_t key_length) {
    const OpScope scope("softmax_attention");
    const Tensor qv = q.value(), kv = k.value(), vv = v.value();
    const Tensor cu_seqlens = layout.cu_seqlens;
    const int64_t head_dim = qv.dim(-1) / heads, keys = key_length > 0 ? key_length : layout.length;
    LEVIN_CHECK(qv.dim(-1) == heads * head_dim && kv.dim(-1) == kv_heads * head_dim &&
                    kv.shape() == vv.shape() && qv.rows() == layout.tokens() &&
                    kv.rows() == layout.batch * keys && heads % kv_heads == 0,
                "softmax_attention", "q {}, k {}, v {} do not fit {} heads, {} key heads",
                to_string(qv.shape()), to_string(kv.shape()), to_string(vv.shape()), heads, kv_heads);
    kernels::SoftmaxAttentionShape shape{
        .batch = layout.batch,
        .query_length = layout.length,
        .key_length = keys,
        .heads = heads,
        .kv_heads = kv_heads,
        .head_dim = head_dim,
        .dtype = qv.dtype(),
        .scale = 1 / std::sqrt(static_cast<double>(head_dim)),
        .cu_seqlens = cu_seqlens.defined() ? cu_seqlens.data<int32_t>() : nullptr,
        .documents = cu_seqlens.defined() ? cu_seqlens.count() - 1 : 0};
    Tensor o = Tensor::empty(qv.shape(), qv.dtype(), qv.device());
    Tensor lse = Tensor::empty({layout.batch, heads, layout.length}, accumulator_of(qv.dtype()), qv.device());
    kernels::softmax_attention_forward(qv.stream(), {.shape = shape,
                                                     .q = qv.data(),
                                                     .q_stride = qv.row_stride(),
                                                     .k = kv.data(),
                                                     .k_stride = kv.row_stride(),
                                                     .v = vv.data(),
                                                     .v_stride = vv.row_stride(),
                                                     .o = o.data(),
                                                     .log_sum_exp = lse.data()});
    return record("softmax_attention", {q, k, v}, o,
                  [shape, qv, kv, vv, o, lse, cu_seqlens](const Tensor& d_o, Gradients& inputs) {
                      const Tensor gradient = d_o.contiguous();
                      Tensor dq = inputs.buffer(0), dk = inputs.buffer(1), dv = inputs.buffer(2);
                      kernels::softmax_attention_backward(qv.stream(), {.shape = shape,
                                                                        .q = qv.data(),
                                                                        .q_stride = qv.row_stride(),
                                                                        .k = kv.data(),
                                                                        .k_stride = kv.row_stride(),
                                                                        .v = vv.data(),
                                                                        .v_stride = vv.row_stride(),
                                                                        .o = o.data(),
                                                                        .log_sum_exp = lse.data(),
                                                                        .d_o = gradient.data(),
                                                                        .dq = dq.data(),
                                                                        .dq_stride = dq.row_stride(),
                                                                        .dk = dk.data(),
                                                                        .dk_stride = dk.row_stride(),
                                                                        .dv = dv.data(),
                                                                        .dv_stride = dv.row_stride()});
                      inputs.add(0, dq);
                      inputs.add(1, dk);
                      inputs.add(2, dv);
                  });
}

}  // namespace levin::ops
