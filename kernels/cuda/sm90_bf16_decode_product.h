// decode_linear() of a few to 64 rows in bf16 on Hopper, as one kernel.
#pragma once

#include "kernels/cuda/check.h"
#include "kernels/decode.h"

namespace levin::kernels::cuda {

bool sm90_bf16_decode_product_fits(const Stream& stream, const DecodeLinear& args);
void sm90_bf16_decode_product(const Stream& stream, const DecodeLinear& args);

}  // namespace levin::kernels::cuda
