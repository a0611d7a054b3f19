#include "kernels/cuda/lightning_plan.h"

#include <algorithm>

namespace levin::kernels::cuda {

namespace {

constexpr int64_t kTile = 64,
                  kShortestSegment = 512;  // below this the start of a block costs more than it brings
// The Hopper kernels hold lambda^-64 in f32.
constexpr float kSteepest = 75.0f / kTile;
// What making a segment's state costs, of what its scan costs: half the bytes and less than half the work.
constexpr double kStatePass = 0.3;

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
    SegmentPlan best{1, std::max(length, kTile), std::max(length, kTile)};
    // Cost in tokens walked one after another by the busiest place; more than one segment walks k and v
    // twice, the first time without the outputs.
    const auto cost = [&](const SegmentPlan& plan) {
        const int64_t waves = (chains * plan.segments + resident - 1) / resident;
        return static_cast<double>(waves * plan.segment_length) * (plan.segments > 1 ? 1.5 : 1.0);
    };
    for (int64_t segments = 2; segments <= 64 && length / segments >= kShortestSegment; segments *= 2) {
        const int64_t segment_length = ((length + segments - 1) / segments + kTile - 1) / kTile * kTile;
        const SegmentPlan plan{(length + segment_length - 1) / segment_length, segment_length,
                               segment_length};
        if (cost(plan) < 0.95 * cost(best)) best = plan;
    }
    return best;
}

SegmentPlan plan_unequal_segments(int64_t chains, int64_t length, int64_t resident, bool states_first) {
    const double state_pass = states_first ? 0 : kStatePass;
    SegmentPlan best{1, std::max(length, kTile), std::max(length, kTile)};
    // Tokens until the last place is done.
    const auto cost = [&](const SegmentPlan& plan) {
        const double others =
            plan.segments > 1 ? (1 + state_pass) * static_cast<double>(plan.segment_length) : 0;
        return std::max(static_cast<double>(plan.first_length), others);
    };
    const int64_t tiles = (length + kTile - 1) / kTile;
    // One wave: more pieces than that would only move more bytes.
    const int64_t most = std::min(resident / std::max<int64_t>(chains, 1), length / kShortestSegment);
    for (int64_t segments = 2; segments <= std::min<int64_t>(most, 64); ++segments) {
        const auto exact = static_cast<double>(tiles) / (static_cast<double>(segments) + state_pass);
        for (const int64_t others : {static_cast<int64_t>(exact), static_cast<int64_t>(exact) + 1}) {
            const SegmentPlan plan{segments, others * kTile, (tiles - (segments - 1) * others) * kTile};
            if (plan.first_length > 0 && cost(plan) < 0.95 * cost(best)) best = plan;
        }
    }
    return best;
}

}  // namespace levin::kernels::cuda
