#include "kernels/gemm.h"

#include "tests/kernels/kernel_test.h"

namespace levin::kernels::test {
namespace {

struct Case {
    int64_t m, n, k;
    DType dtype, c_dtype;
    bool transpose_a, transpose_b;
    double alpha, beta;
};

std::string describe(const Case& c) {
    return fmt::format("m {} n {} k {} {} -> {} transpose {} {} alpha {} beta {} seed {}", c.m, c.n, c.k,
                       to_string(c.dtype), to_string(c.c_dtype), c.transpose_a, c.transpose_b, c.alpha,
                       c.beta, seed());
}

// Matrices in memory wider than they are, so that a mixed-up stride shows.
void check(const Case& t) {
    SCOPED_TRACE(describe(t));
    const auto size = [](int64_t v) { return static_cast<size_t>(v); };
    const size_t m = size(t.m), n = size(t.n), k = size(t.k);
    const size_t a_columns = t.transpose_a ? m : k, b_columns = t.transpose_b ? k : n;
    const size_t lda = a_columns + 3, ldb = b_columns + 5, ldc = n + 2;
    const auto a = rounded(t.dtype, random_normal(m * k)), b = rounded(t.dtype, random_normal(k * n));
    const auto old = rounded(t.c_dtype, random_normal(m * n));
    std::vector<double> expected(m * n);
    for (size_t i = 0; i < m; ++i)
        for (size_t x = 0; x < k; ++x) {
            const double left = t.alpha * (t.transpose_a ? a[x * m + i] : a[i * k + x]);
            for (size_t j = 0; j < n; ++j)
                expected[i * n + j] += left * (t.transpose_b ? b[j * k + x] : b[x * n + j]);
        }
    if (t.beta != 0)
        for (size_t i = 0; i < m * n; ++i) expected[i] += t.beta * old[i];
    const Buffer a_buffer(t.dtype, spread(a, std::max<size_t>(1, a_columns), lda));
    const Buffer b_buffer(t.dtype, spread(b, std::max<size_t>(1, b_columns), ldb));
    // beta == 0 must not read C: it holds NaN then.
    const auto c_start = t.beta != 0 ? old : std::vector<double>(m * n, std::nan(""));
    const Buffer c(t.c_dtype, spread(c_start, n, ldc));
    gemm(stream(), Gemm{t.transpose_a, t.transpose_b, t.m, t.n, t.k, t.dtype, t.c_dtype, a_buffer.data(),
                        static_cast<int64_t>(lda), b_buffer.data(), static_cast<int64_t>(ldb), c.data(),
                        static_cast<int64_t>(ldc), t.alpha, t.beta});
    EXPECT_LT(relative_error(gather(c.read(), n, ldc), expected), tolerance(t.c_dtype));
}

const std::pair<DType, DType> kTypes[] = {{DType::f64, DType::f64},
                                          {DType::f32, DType::f32},
                                          {DType::bf16, DType::bf16},
                                          {DType::bf16, DType::f32}};

TEST(Gemm, EveryTransposeTypeAndScale) {
    for (const auto& [dtype, c_dtype] : kTypes)
        for (const bool ta : {false, true})
            for (const bool tb : {false, true})
                for (const auto& [alpha, beta] : {std::pair{1.0, 0.0}, {1.0, 1.0}, {0.5, 0.0}, {-1.5, 0.25}})
                    check({33, 47, 129, dtype, c_dtype, ta, tb, alpha, beta});
}

TEST(Gemm, OddAndLargeShapes) {
    for (const auto& [dtype, c_dtype] : kTypes) {
        for (const int64_t size : {1, 2, 17, 64}) check({size, 1, size, dtype, c_dtype, false, true, 1, 0});
        check({1, 300, 65, dtype, c_dtype, false, false, 1, 1});
        check({530, 545, 37, dtype, c_dtype, false, true, 1, 0});  // more than one panel each way
        check({540, 64, 700, dtype, c_dtype, true, false, 1, 1});
        check({300, 24, 3000, dtype, c_dtype, true, false, 1, 0});  // a weight gradient: long sums
    }
}

TEST(Gemm, NothingToSum) {
    for (const auto& [dtype, c_dtype] : kTypes) {
        check({5, 7, 0, dtype, c_dtype, false, false, 1, 0});
        check({5, 7, 0, dtype, c_dtype, false, false, 1, 0.5});
        const Buffer c = Buffer::poisoned(c_dtype, 4);
        for (const auto& [m, n] : {std::pair{0, 2}, {2, 0}}) {
            gemm(stream(),
                 Gemm{false, false, m, n, 3, dtype, c_dtype, c.data(), 3, c.data(), 2, c.data(), 2, 1, 0});
            for (const double value : c.read()) EXPECT_TRUE(std::isnan(value));
        }
    }
}

TEST(Gemm, SameBitsAgain) {
    for (const auto& [dtype, c_dtype] : kTypes) {
        const int64_t m = 192, n = 256, k = 1500;
        const Buffer a(dtype, random_normal(static_cast<size_t>(k * m))),
            b(dtype, random_normal(static_cast<size_t>(k * n)));
        std::vector<double> first;
        for (int trial = 0; trial < 5; ++trial) {
            const Buffer c = Buffer::poisoned(c_dtype, static_cast<size_t>(m * n));
            gemm(stream(),
                 Gemm{true, false, m, n, k, dtype, c_dtype, a.data(), m, b.data(), n, c.data(), n, 1, 0});
            if (trial == 0) first = c.read();
            EXPECT_EQ(c.read(), first) << to_string(dtype);
        }
    }
}

// Large enough that a GPU times its algorithms at first use: that must leave a sum as it is.
TEST(Gemm, ChoosingAnAlgorithmAddsNothing) {
    for (const auto& [dtype, c_dtype] : kTypes)
        for (const int64_t size : {300, 301}) {
            check({size, 280, 200, dtype, c_dtype, true, false, 1, 1});
            check({size, 280, 200, dtype, c_dtype, true, false, 1, 0});
            check({size, 280, 200, dtype, c_dtype, true, false, 1, 1});
            check({size, 264, 200, dtype, c_dtype, true, false, 1, 0});
            check({size, 264, 200, dtype, c_dtype, true, false, 1, 1});
        }
}

TEST(Gemm, RefusesTypesItHasNoProductFor) {
    const Buffer x = Buffer::poisoned(DType::f64, 1);
    EXPECT_THROW(gemm(stream(), Gemm{false, false, 1, 1, 1, DType::f32, DType::bf16, x.data(), 1, x.data(), 1,
                                     x.data(), 1}),
                 Error);
    EXPECT_THROW(gemm(stream(), Gemm{false, false, 1, 1, 1, DType::i32, DType::i32, x.data(), 1, x.data(), 1,
                                     x.data(), 1}),
                 Error);
}

}  // namespace
}  // namespace levin::kernels::test
