// Normal random numbers: the same bits on every device, close to the library's functions, anywhere in their
// stream.
#include "kernels/random.h"

#include <cmath>
#include <cstring>
#include <numbers>

#include "tests/kernels/kernel_test.h"

namespace levin::kernels::test {
namespace {

constexpr uint32_t kKey[2] = {0x01234567, 0x89abcdef}, kStream[2] = {0xfeedface, 0xcafef00d};

random::Words words_of(uint64_t index) {
    return random::philox(
        {static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), kStream[0], kStream[1]}, kKey[0],
        kKey[1]);
}

// By the library, in long double but for the angle, whose rounding belongs to the definition.
double reference(const random::Words& w) {
    const double u = (static_cast<double>((uint64_t{w.b} << 32 | w.a) >> 11) + 1) * 0x1p-53;
    const double v = static_cast<double>((uint64_t{w.d} << 32 | w.c) >> 11) * 0x1p-53;
    return static_cast<double>(std::sqrt(-2 * std::log(static_cast<long double>(u))) *
                               std::cos(static_cast<long double>(2 * std::numbers::pi * v)));
}

TEST(RandomNumbers, AreBoxAndMullersToAFewUlps) {
    for (uint64_t i = 0; i < 200000; ++i) {
        const random::Words words = words_of(i);
        const double expected = reference(words);
        ASSERT_NEAR(random::normal(words), expected, 1e-15 * std::abs(expected)) << i;
    }
    // The ends of the logarithm, the borders of the cosine's quarters and their neighbours.
    constexpr uint32_t all = ~0u;
    for (const auto& [low, high] : {std::pair{0u, 0u}, {all, all}, {all - (1u << 11), all}, {0u, 1u << 31}})
        for (const uint32_t quarter : {0u, 1u, 2u, 3u, 4u, 5u, 6u, 7u})
            for (const int64_t beside : {-4096, -2048, 0, 2048, 4096}) {
                const uint64_t angle = (uint64_t{quarter} << 61) + static_cast<uint64_t>(beside);
                const random::Words words{low, high, static_cast<uint32_t>(angle),
                                          static_cast<uint32_t>(angle >> 32)};
                const double expected = reference(words);
                EXPECT_NEAR(random::normal(words), expected, 1e-15 * std::abs(expected))
                    << low << " " << high << " " << quarter << " " << beside;
            }
}

// Golden bits: a run means the same with every version, compiler and device.
TEST(RandomNumbers, HaveTheseBits) {
    const Buffer x = Buffer::poisoned(DType::f64, 4);
    fill_normal(stream(), {.rows = 1,
                           .columns = 4,
                           .key = {kKey[0], kKey[1]},
                           .stream = {kStream[0], kStream[1]},
                           .first = 0xfffffffe,
                           .row_step = 4,
                           .deviation = 1,
                           .dtype = DType::f64,
                           .x = x.data(),
                           .x_stride = 4});
    EXPECT_EQ(x.read(), (std::vector<double>{-0x1.901096ebdb454p+0, 0x1.def7095936e34p-3,
                                             -0x1.024a8145b4222p+0, 0x1.2aede58e2fa8fp-1}));
}

TEST(RandomNumbers, SameBitsInEveryShapeAndType) {
    for (const DType dtype : {DType::f64, DType::f32, DType::bf16})
        for (const auto& [rows, columns] :
             {std::pair<int64_t, int64_t>{1, 1}, {1, 70000}, {5, 33}, {129, 700}, {3, 256}})
            for (const uint64_t first : {uint64_t{0}, uint64_t{0xffffff80}, uint64_t{1} << 40}) {
                SCOPED_TRACE(fmt::format("{} {} x {} from {}", to_string(dtype), rows, columns, first));
                const int64_t stride = columns + 3;
                const uint64_t step = static_cast<uint64_t>(columns) * 2 + 1;
                const Buffer x = Buffer::poisoned(dtype, static_cast<size_t>(rows * stride));
                fill_normal(stream(), {.rows = rows,
                                       .columns = columns,
                                       .key = {kKey[0], kKey[1]},
                                       .stream = {kStream[0], kStream[1]},
                                       .first = first,
                                       .row_step = step,
                                       .deviation = 0.02,
                                       .dtype = dtype,
                                       .x = x.data(),
                                       .x_stride = stride});
                const std::vector<double> found = x.read();
                int64_t wrong = 0;
                for (int64_t r = 0; r < rows; ++r)
                    for (int64_t c = 0; c < stride; ++c) {
                        const double value = found[static_cast<size_t>(r * stride + c)];
                        if (c >= columns) {
                            wrong += !std::isnan(value);  // between the rows nothing is written
                            continue;
                        }
                        double expected =
                            0.02 * random::normal(words_of(first + static_cast<uint64_t>(r) * step +
                                                           static_cast<uint64_t>(c)));
                        if (dtype != DType::f64) expected = static_cast<float>(expected);
                        if (dtype == DType::bf16)
                            expected = static_cast<float>(bf16(static_cast<float>(expected)));
                        wrong += value != expected;
                    }
                EXPECT_EQ(wrong, 0);
            }
}

}  // namespace
}  // namespace levin::kernels::test
