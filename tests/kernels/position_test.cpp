#include "kernels/position.h"

#include <omp.h>

#include <cmath>

#include "tests/kernels/kernel_test.h"
#include "tests/kernels/lightning_reference.h"

namespace levin::kernels::test {
namespace {

using Values = std::vector<double>;

struct Shape {
    int64_t tokens, length, heads, head_dim, first_position;
    int64_t width() const { return heads * head_dim; }
    int64_t position(int64_t token) const { return first_position + token % length; }
};
const std::vector<Shape> kShapes = {
    {1, 1, 1, 2, 5},          {6, 1, 2, 8, 12345},          {300, 150, 3, 10, 0},
    {130, 130, 2, 64, 9},     {257, 257, 1, 16, 1'000'000}, {140, 140, 2, 6, int64_t{1} << 40},
    {520, 260, 2, 4, 1 << 20}};
const std::vector<DType> kTypes = {DType::f64, DType::f32, DType::bf16};

// Rows of `width` values with `gap` more columns between them.
Values strided(const Values& x, int64_t width, int64_t gap) {
    Values y;
    for (size_t i = 0; i < x.size(); i += width) {
        y.insert(y.end(), x.begin() + i, x.begin() + i + width);
        y.insert(y.end(), gap, std::nan(""));
    }
    return y;
}
Values dense(const Values& y, int64_t width, int64_t gap) {
    Values x;
    for (size_t i = 0; i < y.size(); i += width + gap) {
        x.insert(x.end(), y.begin() + i, y.begin() + i + width);
        for (int64_t c = width; c < width + gap; ++c)
            EXPECT_TRUE(std::isnan(y[i + c])) << "wrote beside its columns";
    }
    return x;
}
std::string name(const Shape& s, DType dtype) {
    return to_string(dtype) + " tokens " + std::to_string(s.tokens) + " position " +
           std::to_string(s.first_position) + " seed " + std::to_string(seed());
}

TEST(Lrpe, Forward) {
    for (const DType dtype : kTypes)
        for (const Shape& s : kShapes) {
            SCOPED_TRACE(name(s, dtype));
            const Values x = rounded(dtype, random_normal(s.tokens * s.width())),
                         theta = rounded(DType::f32, random_normal(s.width()));
            const Buffer in(dtype, strided(x, s.width(), 3)), angles(accumulator_of(dtype), theta),
                y = Buffer::poisoned(dtype, 2 * x.size());
            lrpe_forward(stream(), {s.tokens, s.length, s.heads, s.head_dim, dtype, s.first_position,
                                    in.data(), s.width() + 3, angles.data(), y.data()});
            Values expected(2 * x.size());
            for (int64_t token = 0; token < s.tokens; ++token)
                for (int64_t c = 0; c < s.width(); ++c) {
                    const auto [co, si] = turn(theta[c], s.position(token));
                    const int64_t head = c / s.head_dim, i = c % s.head_dim,
                                  row = (token * s.heads + head) * 2 * s.head_dim;
                    expected[row + i] = x[token * s.width() + c] * co;
                    expected[row + s.head_dim + i] = x[token * s.width() + c] * si;
                }
            EXPECT_LT(relative_error(y.read(), expected), tolerance(dtype));
        }
}

TEST(Lrpe, Backward) {
    for (const DType dtype : kTypes)
        for (const Shape& s : kShapes)
            for (const double beta : {0.0, 2.0}) {
                SCOPED_TRACE(name(s, dtype));
                const DType acc = accumulator_of(dtype);
                const Values x = rounded(dtype, random_normal(s.tokens * s.width())),
                             dy = rounded(dtype, random_normal(2 * x.size())),
                             theta = rounded(DType::f32, random_normal(s.width()));
                const Buffer in(dtype, strided(x, s.width(), 1)), angles(acc, theta), d_out(dtype, dy),
                    dx = Buffer::poisoned(dtype, strided(x, s.width(), 2).size()),
                    dtheta = beta == 0 ? Buffer::poisoned(acc, theta.size())
                                       : Buffer(acc, Values(theta.size(), 1));
                lrpe_backward(stream(), {s.tokens, s.length, s.heads, s.head_dim, dtype, s.first_position,
                                         in.data(), s.width() + 1, angles.data(), d_out.data(), dx.data(),
                                         s.width() + 2, dtheta.data(), beta});
                Values expected(x.size()), d_angles(theta.size(), beta), terms(theta.size(), 1);
                for (int64_t token = 0; token < s.tokens; ++token)
                    for (int64_t c = 0; c < s.width(); ++c) {
                        const auto [co, si] = turn(theta[c], s.position(token));
                        const int64_t row = (token * s.heads + c / s.head_dim) * 2 * s.head_dim,
                                      i = c % s.head_dim, at = token * s.width() + c;
                        const double d_cos = dy[row + i], d_sin = dy[row + s.head_dim + i],
                                     time = static_cast<double>(s.position(token));
                        expected[at] = d_cos * co + d_sin * si;
                        d_angles[c] += time * x[at] * (d_sin * co - d_cos * si);
                        terms[c] += time * std::abs(x[at]) * (std::abs(d_sin * co) + std::abs(d_cos * si));
                    }
                EXPECT_LT(relative_error(dense(dx.read(), s.width(), 2), expected), tolerance(dtype));
                const Values got = dtheta.read();
                for (size_t c = 0; c < got.size(); ++c)
                    EXPECT_NEAR(got[c], d_angles[c], tolerance(acc) * terms[c]) << "dtheta " << c;
            }
}

TEST(Lrpe, SameBitsAtAnyNumberOfThreads) {
    const Shape s{3000, 1500, 2, 24, 77};
    const int threads = omp_get_max_threads();
    const Values x = random_normal(s.tokens * s.width());
    const Buffer in(DType::f32, x), theta(DType::f32, random_normal(s.width())),
        dy(DType::f32, random_normal(2 * x.size()));
    std::vector<Values> results;
    for (const int now : {1, 2, 5}) {
        omp_set_num_threads(now);
        const Buffer dx = Buffer::poisoned(DType::f32, x.size()),
                     dtheta = Buffer::poisoned(DType::f32, s.width());
        lrpe_backward(stream(),
                      {s.tokens, s.length, s.heads, s.head_dim, DType::f32, s.first_position, in.data(),
                       s.width(), theta.data(), dy.data(), dx.data(), s.width(), dtheta.data(), 0});
        Values all = dx.read();
        for (const double v : dtheta.read()) all.push_back(v);
        results.push_back(all);
    }
    omp_set_num_threads(threads);
    EXPECT_EQ(results[0], results[1]);
    EXPECT_EQ(results[0], results[2]);
}

Values rope_reference(const Shape& s, double base, bool inverse, const Values& x) {
    Values y(x.size());
    const int64_t half = s.head_dim / 2;
    for (int64_t token = 0; token < s.tokens; ++token)
        for (int64_t head = 0; head < s.heads; ++head)
            for (int64_t c = 0; c < half; ++c) {
                const long double angle =
                    std::pow(base, -2.0 * c / s.head_dim) * static_cast<long double>(s.position(token));
                const double co = std::cos(angle), si = inverse ? -std::sin(angle) : std::sin(angle);
                const int64_t a = (token * s.heads + head) * s.head_dim + c, b = a + half;
                y[a] = x[a] * co - x[b] * si;
                y[b] = x[b] * co + x[a] * si;
            }
    return y;
}

TEST(Rope, BothDirections) {
    for (const DType dtype : kTypes)
        for (const Shape& s : kShapes)
            for (const bool inverse : {false, true}) {
                SCOPED_TRACE(name(s, dtype));
                const Values x = rounded(dtype, random_normal(s.tokens * s.width()));
                const Buffer in(dtype, strided(x, s.width(), 3)),
                    y = Buffer::poisoned(dtype, strided(x, s.width(), 1).size());
                rope(stream(), {s.tokens, s.length, s.heads, s.head_dim, dtype, s.first_position, 10000,
                                inverse, in.data(), s.width() + 3, y.data(), s.width() + 1});
                // base^x of two libraries may differ in the last bit: at position 2^40 that is 1e-4 rad.
                const double bound =
                    std::max(tolerance(dtype), 3e-16 * static_cast<double>(s.first_position));
                EXPECT_LT(relative_error(dense(y.read(), s.width(), 1), rope_reference(s, 10000, inverse, x)),
                          bound);
            }
}

TEST(Rope, InPlaceAndBack) {
    const Shape s{200, 100, 3, 16, 4};
    const Values x = random_normal(s.tokens * s.width());
    const Buffer both(DType::f64, x);
    for (const bool inverse : {false, true}) {
        rope(stream(), {s.tokens, s.length, s.heads, s.head_dim, DType::f64, s.first_position, 500000,
                        inverse, both.data(), s.width(), both.data(), s.width()});
        EXPECT_LT(relative_error(both.read(), inverse ? x : rope_reference(s, 500000, false, x)), 1e-12);
    }
}

}  // namespace
}  // namespace levin::kernels::test
