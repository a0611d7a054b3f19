// The rules that pick the CUDA kernel of lightning attention and cut its work: no GPU needed.
#include "kernels/cuda/lightning_plan.h"

#include <gtest/gtest.h>

namespace levin::kernels::cuda {
namespace {

constexpr LightningFacts kHopper{true, 227 << 10}, kAmpere{true, 163 << 10}, kSmall{true, 99 << 10};

LightningShape shape(int64_t key_dim, int64_t value_dim) {
    LightningShape shape{1, 4096, 8, key_dim, value_dim, DType::bf16, Activation::silu, Activation::none};
    shape.steepest = 0.5f;
    return shape;
}

TEST(LightningPlan, TensorCoresTakeWhatTheyCan) {
    EXPECT_TRUE(mma_scan_fits(shape(128, 128), kHopper));
    EXPECT_TRUE(mma_scan_fits(shape(128, 128), kAmpere));
    EXPECT_FALSE(mma_scan_fits(shape(128, 128), kSmall));
    EXPECT_FALSE(mma_scan_fits(shape(128, 128), {false, 227 << 10}));
    EXPECT_TRUE(mma_scan_fits(shape(96, 64), kHopper));
    EXPECT_FALSE(mma_scan_fits(shape(100, 64), kHopper));
    EXPECT_FALSE(mma_scan_fits(shape(64, 136), kHopper));
    LightningShape other = shape(64, 64);
    other.dtype = DType::f32;
    EXPECT_FALSE(mma_scan_fits(other, kHopper));
    other = shape(64, 64);
    other.v_activation = Activation::gelu;
    EXPECT_FALSE(mma_scan_fits(other, kHopper));
}

TEST(LightningPlan, HopperTakesWhatItsKernelsKnow) {
    constexpr LightningFacts kNew{true, 227 << 10, true};
    EXPECT_TRUE(sm90_lightning_fits(shape(128, 128), kNew));
    EXPECT_TRUE(sm90_lightning_fits(shape(64, 96), kNew));
    EXPECT_FALSE(sm90_lightning_fits(shape(128, 128), kAmpere));
    EXPECT_FALSE(sm90_lightning_fits(shape(128, 128), {false, 227 << 10, true}));
    EXPECT_FALSE(sm90_lightning_fits(shape(136, 128), kNew));
    EXPECT_FALSE(sm90_lightning_fits(shape(128, 60), kNew));
    const float theta = 1;
    LightningShape other = shape(128, 128);
    other.theta = &theta;
    EXPECT_TRUE(sm90_lightning_fits(other, kNew));
    other = shape(128, 128);
    other.qk_activation = Activation::relu;
    EXPECT_TRUE(sm90_lightning_fits(other, kNew));
    other.v_activation = Activation::relu;
    EXPECT_FALSE(sm90_lightning_fits(other, kNew));
    other.v_activation = Activation::none;
    other.dtype = DType::f32;
    EXPECT_FALSE(sm90_lightning_fits(other, kNew));
    other = shape(128, 128);
    other.steepest = 1.0f;
    EXPECT_TRUE(sm90_lightning_fits(other, kNew));
    other.steepest = 1.2f;
    EXPECT_FALSE(sm90_lightning_fits(other, kNew));
    other.steepest = LightningShape{}.steepest;  // not known
    EXPECT_FALSE(sm90_lightning_fits(other, kNew));
}

TEST(LightningPlan, RotaryKeysAreWide) {
    const float theta = 1;
    LightningShape wide = shape(128, 128);
    EXPECT_FALSE(needs_expansion(wide));
    EXPECT_EQ(expanded_shape(wide).qk_activation, Activation::silu);
    wide.theta = &theta;
    EXPECT_TRUE(needs_expansion(wide));
    EXPECT_EQ(expanded_shape(wide).key_dim, 256);
    EXPECT_EQ(expanded_shape(wide).qk_activation, Activation::none);
    EXPECT_FALSE(needs_expansion(expanded_shape(wide)));
    EXPECT_TRUE(mma_scan_fits(wide, kHopper));
    EXPECT_FALSE(mma_scan_fits(wide, kAmpere));
    wide.key_dim = 64;
    EXPECT_TRUE(mma_scan_fits(wide, kAmpere));
    LightningShape relu = shape(64, 64);
    relu.qk_activation = Activation::relu;
    EXPECT_TRUE(needs_expansion(relu));
}

TEST(LightningPlan, SegmentsFillTheChip) {
    // Enough chains: none. Few: some, of whole tiles, that cover the sequence.
    EXPECT_EQ(plan_segments(256, 1024, 132).segments, 1);
    EXPECT_EQ(plan_segments(128, 2048, 132).segments, 1);
    for (const int64_t chains : {1, 16, 32, 48})
        for (const int64_t length : {4096, 5000, 16384, 1 << 20}) {
            const SegmentPlan plan = plan_segments(chains, length, 132);
            EXPECT_GT(plan.segments, 1) << chains << " chains of " << length;
            EXPECT_LE(plan.segments * chains, 132) << "one wave";
            EXPECT_EQ(plan.segment_length % 64, 0);
            EXPECT_GE(plan.segment_length, 512);
            EXPECT_GE(plan.segments * plan.segment_length, length);
            EXPECT_LT((plan.segments - 1) * plan.segment_length, length);
        }
    EXPECT_EQ(plan_segments(32, 8192, 132).segments, 4);
    EXPECT_EQ(plan_segments(16, 16384, 132).segments, 8);
    // A second wave costs more than the halves save.
    EXPECT_EQ(plan_segments(96, 16384, 132).segments, 1);
    // Too short to cut.
    EXPECT_EQ(plan_segments(1, 900, 132).segments, 1);
    EXPECT_EQ(plan_segments(1, 1, 132).segments, 1);
}

}  // namespace
}  // namespace levin::kernels::cuda
