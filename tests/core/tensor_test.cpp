#include "core/tensor.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "core/random.h"

namespace levin {
namespace {

TEST(Tensor, ViewsShareMemoryAndKnowTheirRows) {
    Tensor t = Tensor::zeros({4, 6}, DType::f32);
    Tensor slice = t.narrow(1, 2, 3);
    slice.fill(7);
    const auto values = t.to_vector();
    EXPECT_EQ(values[2], 7);
    EXPECT_EQ(values[1], 0);
    EXPECT_EQ(values[5], 0);
    EXPECT_EQ(values[23], 0);
    EXPECT_EQ(slice.row_stride(), 6);
    EXPECT_EQ(slice.rows(), 4);
    EXPECT_FALSE(slice.is_contiguous());
    EXPECT_EQ(slice.contiguous().to_vector(), std::vector<double>(12, 7));
    EXPECT_EQ(t.view({2, -1}).shape(), (Shape{2, 12}));
    EXPECT_THROW(t.view({5, 5}), Error);
    EXPECT_THROW(t.narrow(1, 4, 3), Error);
    EXPECT_THROW(slice.view({12}), Error);
}

TEST(Tensor, ConvertsBetweenTypes) {
    const Tensor t = Tensor::from({3}, std::vector<float>{1.0f, 1.00390625f, -3.5f});
    const Tensor b = t.to(DType::bf16);
    EXPECT_EQ(b.to_vector(), (std::vector<double>{1, 1, -3.5}));  // 1 + 2^-8 rounds to even
    EXPECT_EQ(t.to(DType::f64).to_vector()[1], 1.00390625);
    EXPECT_TRUE(std::isnan(Tensor::full({1}, NAN, DType::bf16).item()));
}

TEST(Tensor, RefusesShapesThatOverflow) {
    EXPECT_THROW(element_count({int64_t{1} << 40, int64_t{1} << 40}), Error);
    EXPECT_THROW(element_count({-1}), Error);
    EXPECT_EQ(element_count({}), 1);
}

TEST(Memory, IsReusedAndCountedByCategory) {
    const MemoryStatistics before = memory_statistics({});
    void* first;
    {
        MemoryScope scope(MemoryCategory::optimizer);
        const Tensor t = Tensor::empty({1000, 1000}, DType::f32);
        first = t.data();
        const MemoryStatistics now = memory_statistics({});
        const size_t grown = now.live[static_cast<int>(MemoryCategory::optimizer)] -
                             before.live[static_cast<int>(MemoryCategory::optimizer)];
        EXPECT_GE(grown, 4000000u);
        EXPECT_LE(grown, 4500000u);
        EXPECT_EQ(now.live_total, before.live_total + grown);
    }
    EXPECT_EQ(memory_statistics({}).live_total, before.live_total);
    EXPECT_EQ(Tensor::empty({1000, 1000}, DType::f32).data(), first);
    release_cached_memory({});
    EXPECT_EQ(memory_statistics({}).cached, 0u);
}

TEST(Random, IsPhilox) {
    // Known answers of the reference implementation (Random123, kat_vectors).
    EXPECT_EQ(philox({0, 0, 0, 0}, {0, 0}),
              (std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
    EXPECT_EQ(philox({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}),
              (std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
}

TEST(Random, IsAFunctionOfSeedNameAndIndex) {
    Tensor whole = Tensor::empty({1000}, DType::f64), part = Tensor::empty({300}, DType::f64);
    fill_normal(whole, Random(1, "w"), 2);
    fill_normal(part, Random(1, "w"), 2, 700);
    EXPECT_EQ(part.to_vector(), whole.narrow(0, 700, 300).to_vector());
    EXPECT_NE(Random(1, "w").bits(0), Random(2, "w").bits(0));
    EXPECT_NE(Random(1, "w").bits(0), Random(1, "v").bits(0));
}

TEST(Random, NormalNumbersHaveTheirMoments) {
    const Random random(3, "moments");
    double sum = 0, squares = 0, fourth = 0;
    constexpr int kCount = 200000;
    for (int i = 0; i < kCount; ++i) {
        const double x = random.normal(static_cast<uint64_t>(i));
        sum += x;
        squares += x * x;
        fourth += x * x * x * x;
    }
    EXPECT_NEAR(sum / kCount, 0, 0.01);
    EXPECT_NEAR(squares / kCount, 1, 0.015);
    EXPECT_NEAR(fourth / kCount, 3, 0.1);
}

}  // namespace
}  // namespace levin
