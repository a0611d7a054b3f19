// Which lightning attention kernel runs, and how its work is cut: host code, tested without a GPU.
#pragma once

#include <cstddef>

#include "kernels/lightning_attention.h"

namespace levin::kernels::cuda {

// What the tensor-core variants need to know besides the shape.
struct LightningFacts {
    bool aligned;          // every pointer and token stride allows 16-byte reads
    size_t shared_memory;  // bytes a block may have
    bool hopper = false;   // compute capability 9.0: wgmma and the copy engine
};

// The Hopper kernels take bf16 heads of 32 to 128 columns, a multiple of 8 (with LRPE the keys grow to twice
// that), any activation on q and k, none or silu on v.
bool sm90_lightning_fits(const LightningShape& shape, const LightningFacts& facts);

// The mma.sync scan takes the same with decays of any steepness, on sm_80 and later.
bool mma_scan_fits(const LightningShape& shape, const LightningFacts& facts);

// LRPE and activations of q and k other than silu are applied by kernels of their own (lightning_expand.h),
// which leave attention of the second shape: q and k [.., heads, key_width], activated, no theta.
bool needs_expansion(const LightningShape& shape);
LightningShape expanded_shape(const LightningShape& shape);

// How a sequence is cut so that few long sequences still fill the chip: equal pieces of whole tiles (the last
// one may be shorter), each scanned by its own block once the states between them are known.
struct SegmentPlan {
    int64_t segments, segment_length;
};
// `chains`: sequences x heads x column slices x scans in one launch; `resident`: blocks that run at once.
SegmentPlan plan_segments(int64_t chains, int64_t length, int64_t resident);

}  // namespace levin::kernels::cuda
