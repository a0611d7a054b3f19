#include "kernels/cuda/lightning_plan.h"

#include <algorithm>

namespace levin::kernels::cuda {

namespace {

constexpr int64_t kTile = 64,
                  kShortestSegment = 512;  // below this the start of a block costs more than it brings
// The Hopper kernels hold lambda^-64 in f32.
constexpr float kSteepest = 75.0f / kTile;

bool plain_or_silu(Activation activation) {
    return activation == Activation::none || activation == Activation::silu;
}

bool width_fits(int64_t width) { return width >= 32 && width <= 128 && width % 8 == 0; }

}  // namespace

bool sm90_lightning_fits(const LightningShape& shape, const LightningFacts& facts) {
    return facts.hopper && facts.aligned && shape.dtype == DType::bf16 && width_fits(shape.key_dim) &&
           width_fits(shape.value_dim) && shape.steepest <= kSteepest && plain_or_silu(shape.v_activation);
}

bool mma_scan_fits(const LightningShape& shape, const LightningFacts& facts) {
    // Keys of 256 take 192 KB of shared memory, the others at most 160.
    const size_t wanted = (shape.key_width() > 128 ? size_t{193} : size_t{161}) << 10;
    return shape.dtype == DType::bf16 && facts.aligned && facts.shared_memory >= wanted &&
           width_fits(shape.key_dim) && width_fits(shape.value_dim) && plain_or_silu(shape.v_activation);
}

bool needs_expansion(const LightningShape& shape) {
    return shape.theta != nullptr || !plain_or_silu(shape.qk_activation);
}

LightningShape expanded_shape(const LightningShape& shape) {
    LightningShape plain = shape;
    plain.key_dim = shape.key_width();
    plain.theta = nullptr;
    if (needs_expansion(shape)) plain.qk_activation = Activation::none;
    return plain;
}

SegmentPlan plan_segments(int64_t chains, int64_t length, int64_t resident) {
    const int64_t tiles = (length + kTile - 1) / kTile;
    // One wave of blocks: more pieces than that would only move more bytes.
    const int64_t most = std::clamp<int64_t>(
        std::min(resident / std::max<int64_t>(chains, 1), length / kShortestSegment), 1, 64);
    const int64_t piece = std::max<int64_t>(1, (tiles + most - 1) / most);
    return {std::max<int64_t>(1, (tiles + piece - 1) / piece), piece * kTile};
}

}  // namespace levin::kernels::cuda
