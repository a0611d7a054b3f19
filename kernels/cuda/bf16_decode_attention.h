// Attention of one token for the heads of the released models: key widths that are tiles, silu on q and k, no
// rotation. decode.cu takes everything else.
#pragma once

#include "kernels/decode.h"

namespace levin::kernels::cuda {

// bf16, keys 64, 96 or 128 wide, values a multiple of 32, silu on q and k alone, states aligned to 16 bytes.
bool bf16_decode_attention_fits(const DecodeAttention& args);
void bf16_decode_attention(const Stream& stream, const DecodeAttention& args);

}  // namespace levin::kernels::cuda
