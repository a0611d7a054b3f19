#include "kernels/srms_norm.h"

#include "tests/kernels/kernel_test.h"

namespace levin::kernels::test {
namespace {

using Values = std::vector<double>;

// y = g(u) * x * rsqrt(mean(x^2) + eps) on one row.
Values reference_row(const Values& x, double eps) {
    double sum = 0;
    for (const double v : x) sum += v * v;
    const double rstd = 1 / std::sqrt(sum / static_cast<double>(x.size()) + eps);
    Values y = x;
    for (double& v : y) v *= rstd;
    return y;
}
Values row(const Values& x, size_t r, size_t width) {
    const auto begin = x.begin() + static_cast<std::ptrdiff_t>(r * width);
    return {begin, begin + static_cast<std::ptrdiff_t>(width)};
}
void append(Values& to, const Values& values) { to.insert(to.end(), values.begin(), values.end()); }

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
double gate_of(Activation gate, double u) { return gate == Activation::none ? u : sigmoid(u); }

// Central differences of f at x, in float64.
template <class F>
Values numeric_gradient(Values x, const F& f) {
    Values gradient(x.size());
    for (size_t i = 0; i < x.size(); ++i) {
        const double start = x[i], step = 1e-5;
        x[i] = start + step;
        const double above = f(x);
        x[i] = start - step;
        gradient[i] = (above - f(x)) / (2 * step);
        x[i] = start;
    }
    return gradient;
}
double dot(const Values& a, const Values& b) {
    double sum = 0;
    for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
    return sum;
}

constexpr double kEps = 1e-6;

// Away from zero: next to it, where the norm turns over within sqrt(eps), finite differences are no measure.
Values inputs(DType dtype, size_t count) {
    Values x = random_normal(count);
    for (double& v : x) v += v < 0 ? -0.5 : 0.5;
    return rounded(dtype, x);
}

void check_forward(DType dtype, size_t rows, size_t width, bool with_branch) {
    SCOPED_TRACE(
        fmt::format("{} {} x {} branch {} seed {}", to_string(dtype), rows, width, with_branch, seed()));
    const DType acc = accumulator_of(dtype);
    const size_t stride = width + 5;
    const Values x = rounded(dtype, random_normal(rows * width, 3)),
                 branch = rounded(dtype, random_normal(rows * width));
    Values h = x;
    if (with_branch) {
        for (size_t i = 0; i < h.size(); ++i) h[i] += branch[i];
        h = rounded(dtype, h);
    }
    Values expected, expected_rstd;
    for (size_t r = 0; r < rows; ++r) {
        append(expected, reference_row(row(h, r, width), kEps));
        const Values values = row(h, r, width);
        expected_rstd.push_back(1 / std::sqrt(dot(values, values) / static_cast<double>(width) + kEps));
    }
    const Buffer x_buffer(dtype, spread(x, width, stride)), branch_buffer(dtype, branch);
    const Buffer y = Buffer::poisoned(dtype, rows * width), h_buffer = Buffer::poisoned(dtype, rows * width);
    const Buffer rstd = Buffer::poisoned(acc, rows);
    SrmsNormForward args{static_cast<int64_t>(rows),
                         static_cast<int64_t>(width),
                         kEps,
                         dtype,
                         x_buffer.data(),
                         static_cast<int64_t>(stride),
                         nullptr,
                         nullptr,
                         y.data(),
                         rstd.data()};
    if (with_branch) args.branch = branch_buffer.data(), args.h = h_buffer.data();
    srms_norm_forward(stream(), args);
    EXPECT_LT(relative_error(y.read(), expected), tolerance(dtype));
    EXPECT_LT(relative_error(rstd.read(), expected_rstd), tolerance(acc));
    if (!with_branch) return;
    EXPECT_EQ(h_buffer.read(), h);
    // h in place of x, and no y.
    const Buffer in_place(dtype, x), rstd_again = Buffer::poisoned(acc, rows);
    args.x = in_place.data(), args.x_stride = args.width, args.h = in_place.data();
    args.y = nullptr, args.rstd = rstd_again.data();
    srms_norm_forward(stream(), args);
    EXPECT_EQ(in_place.read(), h);
    EXPECT_EQ(rstd_again.read(), rstd.read());
}

TEST(SrmsNorm, Forward) {
    for (const DType dtype : floating_types())
        for (const size_t width : {1, 7, 64, 200, 1031})
            for (const bool branch : {false, true}) check_forward(dtype, 9, width, branch);
    check_forward(DType::f32, 300, 128, true);
}

TEST(SrmsNorm, BackwardMatchesFiniteDifferences) {
    for (const DType dtype : floating_types())
        for (const size_t width : {1, 6, 37}) {
            SCOPED_TRACE(fmt::format("{} width {} seed {}", to_string(dtype), width, seed()));
            const size_t rows = 11, stride = width + 3;
            const DType acc = accumulator_of(dtype);
            const Values x = inputs(dtype, rows * width), dy = rounded(dtype, random_normal(rows * width));
            const Values residual = rounded(dtype, random_normal(rows * width));
            Values expected, rstd;
            for (size_t r = 0; r < rows; ++r) {
                const Values values = row(x, r, width), upstream = row(dy, r, width);
                append(expected, numeric_gradient(values, [&](const Values& v) {
                           return dot(reference_row(v, kEps), upstream);
                       }));
                rstd.push_back(1 / std::sqrt(dot(values, values) / static_cast<double>(width) + kEps));
            }
            const double bound =
                std::max(tolerance(dtype), 1e-8);  // the differences themselves are off by this much
            const Buffer x_buffer(dtype, spread(x, width, stride)), rstd_buffer(acc, rstd),
                residual_buffer(dtype, residual);
            SrmsNormBackward args{static_cast<int64_t>(rows),
                                  static_cast<int64_t>(width),
                                  dtype,
                                  x_buffer.data(),
                                  static_cast<int64_t>(stride),
                                  rstd_buffer.data(),
                                  nullptr,
                                  nullptr,
                                  nullptr,
                                  static_cast<int64_t>(width)};
            const auto scale =
                std::sqrt(dot(dy, dy));  // width 1: the gradient is about zero, measure against dy
            const auto error = [&](const Values& a, const Values& b) {
                double sum = 0;
                for (size_t i = 0; i < a.size(); ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
                return std::sqrt(sum) / scale;
            };
            {
                const Buffer in_place(dtype, dy);  // dx over dy
                args.dy = in_place.data(), args.dx = in_place.data();
                srms_norm_backward(stream(), args);
                EXPECT_LT(error(in_place.read(), expected), bound * 3);
            }
            for (size_t i = 0; i < expected.size(); ++i) expected[i] += residual[i];
            const Buffer dy_buffer(dtype, dy),
                dx(dtype, spread(Values(rows * width, std::nan("")), width, stride));
            args.dy = dy_buffer.data(), args.residual_grad = residual_buffer.data(), args.dx = dx.data();
            args.dx_stride = static_cast<int64_t>(stride);
            srms_norm_backward(stream(), args);
            EXPECT_LT(error(gather(dx.read(), width, stride), expected), bound * 3);
            args.dx = residual_buffer.data(), args.dx_stride = args.width;  // dx over the residual's gradient
            srms_norm_backward(stream(), args);
            EXPECT_LT(error(residual_buffer.read(), expected), bound * 3);
        }
}

// What was dropped after the forward pass comes back with the same bits, in place too.
TEST(SrmsNorm, BackwardFormsTheOutputAgain) {
    for (const DType dtype : floating_types())
        for (const size_t width : {7, 64, 1032}) {
            const size_t rows = 5, count = rows * width;
            const auto n = [](size_t v) { return static_cast<int64_t>(v); };
            const Buffer x(dtype, random_normal(count, 3)), dy(dtype, random_normal(count));
            const Buffer y = Buffer::poisoned(dtype, count), again = Buffer::poisoned(dtype, count);
            const Buffer rstd = Buffer::poisoned(accumulator_of(dtype), rows);
            const Buffer dx = Buffer::poisoned(dtype, count);
            srms_norm_forward(stream(), {n(rows), n(width), kEps, dtype, x.data(), n(width), nullptr, nullptr,
                                         y.data(), rstd.data()});
            SrmsNormBackward args{n(rows),     n(width),  dtype,   x.data(),  n(width),
                                  rstd.data(), dy.data(), nullptr, dx.data(), n(width)};
            srms_norm_backward(stream(), args);
            args.dx = dy.data(), args.y = again.data();
            srms_norm_backward(stream(), args);
            EXPECT_EQ(again.read(), y.read());
            EXPECT_EQ(dy.read(), dx.read());
        }
}

TEST(GatedSrmsNorm, ForwardAndBackward) {
    for (const DType dtype : floating_types())
        for (const Activation gate : {Activation::none, Activation::sigmoid})
            for (const size_t width : {5, 48}) {
                SCOPED_TRACE(fmt::format("{} gate {} width {} seed {}", to_string(dtype),
                                         static_cast<int>(gate), width, seed()));
                const size_t rows = 7, stride = width * 4, count = rows * width;
                const DType acc = accumulator_of(dtype);
                const Values o = inputs(dtype, count), u = rounded(dtype, random_normal(count));
                const Values dy = rounded(dtype, random_normal(count));
                const auto forward = [&](const Values& o_row, const Values& u_row) {
                    Values y = reference_row(o_row, kEps);
                    for (size_t i = 0; i < y.size(); ++i) y[i] *= gate_of(gate, u_row[i]);
                    return y;
                };
                Values y, d_o, du;
                for (size_t r = 0; r < rows; ++r) {
                    const Values o_row = row(o, r, width), u_row = row(u, r, width), up = row(dy, r, width);
                    append(y, forward(o_row, u_row));
                    append(d_o, numeric_gradient(
                                    o_row, [&](const Values& v) { return dot(forward(v, u_row), up); }));
                    append(du, numeric_gradient(u_row,
                                                [&](const Values& v) { return dot(forward(o_row, v), up); }));
                }
                const auto n = [](size_t v) { return static_cast<int64_t>(v); };
                const Buffer o_buffer(dtype, o), u_buffer(dtype, spread(u, width, stride)),
                    dy_buffer(dtype, dy);
                const Buffer y_buffer = Buffer::poisoned(dtype, count), rstd = Buffer::poisoned(acc, rows);
                gated_srms_norm_forward(stream(), {n(rows), n(width), kEps, dtype, gate, o_buffer.data(),
                                                   u_buffer.data(), n(stride), y_buffer.data(), rstd.data()});
                EXPECT_LT(relative_error(y_buffer.read(), y), tolerance(dtype));
                const double bound = std::max(tolerance(dtype), 1e-8);
                for (const bool again : {false, true}) {
                    const Buffer d_o_buffer = Buffer::poisoned(dtype, count),
                                 y_again = Buffer::poisoned(dtype, count);
                    const Buffer du_buffer(dtype, spread(Values(count, std::nan("")), width, stride));
                    gated_srms_norm_backward(
                        stream(), {n(rows), n(width), dtype, gate, o_buffer.data(), u_buffer.data(),
                                   n(stride), rstd.data(), dy_buffer.data(), d_o_buffer.data(),
                                   du_buffer.data(), n(stride), again ? y_again.data() : nullptr});
                    EXPECT_LT(relative_error(d_o_buffer.read(), d_o), bound);
                    EXPECT_LT(relative_error(gather(du_buffer.read(), width, stride), du), bound);
                    if (again) {
                        EXPECT_LT(relative_error(y_again.read(), y), tolerance(dtype));
                    }
                }
            }
}

}  // namespace
}  // namespace levin::kernels::test
