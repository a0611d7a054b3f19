// Causal softmax attention in tiles with an online softmax (never a length x length matrix): cuDNN on GPUs.
#pragma once

#include "kernels/kernel.h"

namespace levin::kernels {

// q, o [batch, query_length, heads, head_dim]; k, v [batch, key_length, kv_heads, head_dim], heads a multiple
// of kv_heads (grouped queries). Query i sees keys 0 .. i + key_length - query_length. Packed documents
// (cu_seqlens i32 [documents + 1] on the stream's device): batch 1, query_length == key_length, a query sees
// its own document only. Strides are between tokens.
struct SoftmaxAttentionShape {
    int64_t batch, query_length, key_length, heads, kv_heads, head_dim;
    DType dtype;
    double scale;
    const int32_t* cu_seqlens = nullptr;
    int64_t documents = 0;
};

// o contiguous; log_sum_exp acc [batch, heads, query_length] (may be nullptr when no backward follows).
struct SoftmaxAttentionForward {
    SoftmaxAttentionShape shape;
    const void* q;
    int64_t q_stride;
    const void* k;
    int64_t k_stride;
    const void* v;
    int64_t v_stride;
    void* o;
    void* log_sum_exp;
};
void softmax_attention_forward(const Stream& stream, const SoftmaxAttentionForward& args);

struct SoftmaxAttentionBackward {
    SoftmaxAttentionShape shape;
    const void* q;
    int64_t q_stride;
    const void* k;
    int64_t k_stride;
    const void* v;
    int64_t v_stride;
    const void* o;
    const void* log_sum_exp;
    const void* d_o;
    void* dq;
    int64_t dq_stride;
    void* dk;
    int64_t dk_stride;
    void* dv;
    int64_t dv_stride;
};
void softmax_attention_backward(const Stream& stream, const SoftmaxAttentionBackward& args);

}  // namespace levin::kernels
