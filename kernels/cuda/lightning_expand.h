// What the tensor-core kernels leave to others: LRPE, and activations besides silu, on q and k.
#pragma once

#include "kernels/base/stream.h"
#include "kernels/cuda/element.cuh"
#include "kernels/lightning_attention.h"

namespace levin::kernels::cuda {

// Runs `attention` on expanded_shape (lightning_plan.h), q and k in scratch memory. bf16, rows that allow
// 16-byte accesses.
void expanded_forward(const Stream& stream, const LightningForward& args,
                      void (*attention)(const Stream&, const LightningForward&));
void expanded_state(const Stream& stream, const LightningState& args,
                    void (*attention)(const Stream&, const LightningState&));
void expanded_backward(const Stream& stream, const LightningBackward& args,
                       void (*attention)(const Stream&, const LightningBackward&));

// out[t, head, :] = in[t, head, 0, :] + in[t, head, 1, :]; in contiguous [tokens, heads, 2, width], out
// strided by token.
void add_halves_of_heads(cudaStream_t stream, int64_t tokens, int64_t heads, int64_t width, const Bf16* in,
                         Bf16* out, int64_t out_stride);

}  // namespace levin::kernels::cuda
