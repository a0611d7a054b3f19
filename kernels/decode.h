// One token for each of `batch` sequences: what a layer does while generating text. Bound by the bytes of
// weights and states, so norms, gates and sums are done inside the products that need them.
#pragma once

#include <cstddef>

#include "kernels/kernel.h"

namespace levin::kernels {

// y[b,:] = input(b) W^T, W [outputs, width]; W [2 outputs, width] with `glu`:
// y[b,j] = activation(input W_j) * (input W_{outputs+j}).
//   plain       input = x
//   norm        h = x + branch (rounded to dtype; branch nullptr: h = x), input = h * rsqrt(mean(h^2) + eps).
//               h is written where given; it must not be x. With `ids`, i32 [batch], and without branch the
//               embedding is taken in: h = scale * x[ids[b],:], x a table of such rows, ids within it
//               (checked by the caller). Such a product comes first in a step: kernels behind it may read
//               weights and states before it has ended
//   gated_norm  input = gate(u) * (x * rsqrt(mean(x^2) + eps)), gate none or sigmoid
// With `add` (not with glu) y is added to the product and the sum rounded once: the residual stream in place.
// The input is rounded to dtype, sums are formed in acc in a fixed order. x, branch, h contiguous
// [batch, width]; u strided; y contiguous [batch, outputs]. `workspace`: decode_workspace() bytes, for back
// ends and shapes that take several steps.
struct DecodeLinear {
    enum class Input { plain, norm, gated_norm };
    int64_t batch, width, outputs;
    DType dtype;
    Input input;
    const void* x;
    const void* branch;
    void* h;
    const void* u;
    int64_t u_stride;
    Activation gate;
    double eps;
    const void* weight;
    bool glu;
    Activation activation;
    void* y;
    void* workspace;
    bool add = false;
    const int32_t* ids = nullptr;
    double scale = 1;
};
void decode_linear(const Stream& stream, const DecodeLinear& args);
inline size_t decode_workspace(int64_t batch, int64_t width, int64_t outputs, DType dtype) {
    return static_cast<size_t>(batch) * (16 + static_cast<size_t>(2 * width + 2 * outputs) * size_of(dtype)) +
           1024;
}

// Lightning attention of one token a sequence in its recurrent form, in one pass over the state:
//   state <- exp(-slope) state + k' v'^T;   o = q'^T state
// with q', k', v' as in lightning_attention.h (LRPE at position *position, i64 on the stream's device). q, k,
// v rows `stride` apart, o contiguous; state acc [batch, heads, key_width, value_dim], updated in place.
struct DecodeAttention {
    int64_t batch, heads, key_dim, value_dim;
    DType dtype;
    Activation qk_activation, v_activation;
    const float* slopes;
    const void* theta;  // acc [heads, key_dim] or nullptr
    const int64_t* position;
    const void* q;
    const void* k;
    const void* v;
    int64_t stride;
    void* state;
    void* o;
};
void decode_attention(const Stream& stream, const DecodeAttention& args);

// Ends a step: ids[b] = place of the largest of logits[b,:] (the lowest of equal ones), ++*position.
struct DecodeAdvance {
    int64_t batch, vocab;
    DType dtype;
    const void* logits;
    int32_t* ids;
    int64_t* position;
};
void decode_advance(const Stream& stream, const DecodeAdvance& args);

}  // namespace levin::kernels
