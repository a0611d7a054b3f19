// The local half of a reduction: contributions of all ranks, combined in rank order.
#pragma once

#include <span>

#include "parallel/communicator.h"

namespace levin {

// out[i] = ((parts[0][i] op parts[1][i]) op parts[2][i]) .. for `count` elements of `dtype` in host memory.
// bf16 sums are formed in f32 and rounded once. `out` may be one of the parts. Threaded; the bits depend on
// neither the number of threads nor on where a range begins.
void reduce_in_rank_order(std::span<const void* const> parts, void* out, int64_t count, DType dtype,
                          ReduceOp op);

}  // namespace levin
