// Tensor maps: how the copy engine of Hopper sees an operand in global memory.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace levin::kernels::cuda {

// bf16 [batch, length, heads, width] with `stride` elements between tokens, read in boxes of `box_rows`
// tokens of one head by 64 columns, in shared memory panels (wgmma.cuh). What lies outside reads as zero.
// data: a multiple of 16 bytes, stride and width: of 8. Coordinates of a box: {column, head, token, batch}.
CUtensorMap panel_map(const void* data, int64_t stride, int64_t batch, int64_t length, int64_t heads,
                      int64_t width, int box_rows = 64);

}  // namespace levin::kernels::cuda
