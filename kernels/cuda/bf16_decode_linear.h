// decode_linear() of one row in bf16 as one kernel.
#pragma once

#include "kernels/cuda/check.h"
#include "kernels/decode.h"

namespace levin::kernels::cuda {

bool bf16_decode_linear_fits(const Stream& stream, const DecodeLinear& args);
void bf16_decode_linear(const Stream& stream, const DecodeLinear& args);

}  // namespace levin::kernels::cuda
