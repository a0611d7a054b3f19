// Sums of what several ranks have of one range, for collectives that copy engines carry.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/base/dtype.h"

namespace levin::kernels::cuda {

inline constexpr int kMaxSummedRanks = 8;

// out[i] = ((parts[0][i] + parts[1][i]) + parts[2][i]) .. for `count` elements of f64, f32 or bf16, bf16
// summed in f32 and rounded once; 2 to 8 parts, `out` may be one of them. Fastest where all
// addresses and the size are multiples of 16 bytes.
void sum_in_rank_order(cudaStream_t stream, const void* const* parts, int ranks, void* out, int64_t count,
                       DType dtype);

}  // namespace levin::kernels::cuda
