// Softmax cross-entropy of bf16 rows that stay in registers between their two sweeps (Hopper).
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cross_entropy.h"

namespace levin::kernels::cuda {

// bf16, rows aligned to 16 bytes, 8192 to 65536 columns.
bool sm90_cross_entropy_fits(const CrossEntropy& args);
void sm90_bf16_cross_entropy(cudaStream_t stream, const CrossEntropy& args);

}  // namespace levin::kernels::cuda
