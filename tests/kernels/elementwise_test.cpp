#include "kernels/elementwise.h"

#include "tests/kernels/kernel_test.h"

namespace levin::kernels::test {
namespace {

using Values = std::vector<double>;

int64_t n(size_t value) { return static_cast<int64_t>(value); }

TEST(Fill, EveryElementAndNoMore) {
    for (const DType dtype : {DType::f64, DType::f32, DType::bf16, DType::i32})
        for (const size_t count : {0, 1, 63, 20001}) {
            const Buffer x(dtype, Values(count + 1, 9));
            fill(stream(), {n(count), dtype, x.data(), -3});
            Values expected(count + 1, -3);
            expected[count] = 9;
            EXPECT_EQ(x.read(), expected);
        }
}

TEST(Copy, BetweenTypesAndStrides) {
    for (const DType from : {DType::f64, DType::f32, DType::bf16, DType::i32})
        for (const DType to : {DType::f64, DType::f32, DType::bf16, DType::i32})
            for (const size_t gap : {0, 3}) {
                SCOPED_TRACE(
                    fmt::format("{} -> {} gap {} seed {}", to_string(from), to_string(to), gap, seed()));
                const size_t rows = 37, columns = 301;
                Values x = random_normal(rows * columns, 100);
                if (from == DType::i32 || to == DType::i32)
                    for (double& v : x) v = std::trunc(v);
                x = rounded(from, x);
                const Buffer source(from, spread(x, columns, columns + gap));
                const Buffer target(to, spread(Values(x.size(), 55), columns, columns + 2 * gap));
                copy(stream(), {n(rows), n(columns), from, source.data(), n(columns + gap), to, target.data(),
                                n(columns + 2 * gap)});
                EXPECT_EQ(gather(target.read(), columns, columns + 2 * gap), rounded(to, x));
            }
}

TEST(Copy, NarrowingRoundsToNearestEvenAndKeepsNaN) {
    // 1 + 2^-8 lies halfway between two bf16 numbers: down to the even 1; 1 + 3 * 2^-8 up to 1 + 2^-6.
    const Buffer x(DType::f32,
                   {1 + 0x1p-8, 1 + 3 * 0x1p-8, -1 - 0x1p-8, 0x1.fffffep127, std::nan(""), INFINITY});
    const Buffer y = Buffer::poisoned(DType::bf16, 6);
    copy(stream(), {1, 6, DType::f32, x.data(), 6, DType::bf16, y.data(), 6});
    const Values out = y.read();
    EXPECT_EQ(out[0], 1);
    EXPECT_EQ(out[1], 1 + 0x1p-6);
    EXPECT_EQ(out[2], -1);
    EXPECT_EQ(out[3], INFINITY);
    EXPECT_TRUE(std::isnan(out[4]));
    EXPECT_EQ(out[5], INFINITY);
}

TEST(AddMultiply, AlsoInPlace) {
    for (const DType dtype : floating_types())
        for (const size_t count : {1, 77, 30000}) {
            SCOPED_TRACE(fmt::format("{} {} seed {}", to_string(dtype), count, seed()));
            Values a = rounded(dtype, random_normal(count)), b = rounded(dtype, random_normal(count));
            if (count == 1) a = with_sign(1, a), b = with_sign(-1, b);
            Values sum(count), scaled(count), product(count);
            for (size_t i = 0; i < count; ++i) {
                sum[i] = 0.75 * a[i] - 1.5 * b[i];
                scaled[i] = 0.75 * a[i];
                product[i] = a[i] * b[i];
            }
            const Buffer left(dtype, a), right(dtype, b), y = Buffer::poisoned(dtype, count);
            add(stream(), {n(count), dtype, 0.75, left.data(), -1.5, right.data(), y.data()});
            EXPECT_LT(relative_error(y.read(), sum), tolerance(dtype));
            add(stream(), {n(count), dtype, 0.75, left.data(), 0, nullptr, y.data()});
            EXPECT_LT(relative_error(y.read(), scaled), tolerance(dtype));
            multiply(stream(), {n(count), dtype, left.data(), right.data(), y.data()});
            EXPECT_LT(relative_error(y.read(), product), tolerance(dtype));
            multiply(stream(), {n(count), dtype, left.data(), right.data(), left.data()});
            EXPECT_EQ(left.read(), y.read());
            const Buffer again(dtype, a);
            add(stream(), {n(count), dtype, 0.75, again.data(), -1.5, right.data(), right.data()});
            EXPECT_LT(relative_error(right.read(), sum), tolerance(dtype));
        }
}

TEST(Bias, AddAndItsGradient) {
    for (const DType dtype : floating_types())
        for (const auto& [rows, columns] :
             {std::pair<size_t, size_t>{1, 1}, {5, 33}, {1000, 130}, {129, 700}}) {
            SCOPED_TRACE(fmt::format("{} {} x {} seed {}", to_string(dtype), rows, columns, seed()));
            const DType acc = accumulator_of(dtype);
            const size_t stride = columns + 3;
            Values x = rounded(dtype, random_normal(rows * columns)),
                   bias = rounded(dtype, random_normal(columns)), old = rounded(acc, random_normal(columns));
            if (x.size() == 1) x = with_sign(1, x), bias = with_sign(1, bias), old = with_sign(1, old);
            Values y = x, sum(columns, 0.0), accumulated(columns);
            for (size_t i = 0; i < x.size(); ++i) y[i] += bias[i % columns], sum[i % columns] += x[i];
            for (size_t c = 0; c < columns; ++c) accumulated[c] = 0.5 * old[c] + sum[c];
            const Buffer x_buffer(dtype, spread(x, columns, stride)), bias_buffer(dtype, bias);
            const Buffer sum_buffer = Buffer::poisoned(acc, columns), accumulated_buffer(acc, old);
            column_sum(stream(),
                       {n(rows), n(columns), dtype, x_buffer.data(), n(stride), sum_buffer.data(), 0});
            EXPECT_LT(relative_error(sum_buffer.read(), sum), tolerance(acc));
            column_sum(stream(), {n(rows), n(columns), dtype, x_buffer.data(), n(stride),
                                  accumulated_buffer.data(), 0.5});
            EXPECT_LT(relative_error(accumulated_buffer.read(), accumulated), tolerance(acc));
            const Buffer out = Buffer::poisoned(dtype, x.size());
            bias_add(stream(), {n(rows), n(columns), dtype, x_buffer.data(), n(stride), bias_buffer.data(),
                                out.data(), n(columns)});
            EXPECT_LT(relative_error(out.read(), y), tolerance(dtype));
            bias_add(stream(), {n(rows), n(columns), dtype, x_buffer.data(), n(stride), bias_buffer.data(),
                                x_buffer.data(), n(stride)});
            EXPECT_EQ(gather(x_buffer.read(), columns, stride), out.read());
        }
}

// ---- activations, after their definitions in elementwise.h
// ---------------------------------------------------------

const Activation kActivations[] = {Activation::none,         Activation::silu, Activation::relu,
                                   Activation::leaky_relu,   Activation::elu,  Activation::one_plus_elu,
                                   Activation::two_plus_elu, Activation::gelu, Activation::sigmoid,
                                   Activation::exp,          Activation::sine};

double value(Activation activation, double x) {
    const double elu = x > 0 ? x : std::expm1(x);
    switch (activation) {
        case Activation::none:
            return x;
        case Activation::silu:
            return x / (1 + std::exp(-x));
        case Activation::relu:
            return x > 0 ? x : 0;
        case Activation::leaky_relu:
            return x > 0 ? x : 0.01 * x;
        case Activation::elu:
            return elu;
        case Activation::one_plus_elu:
            return 1 + elu;
        case Activation::two_plus_elu:
            return 2 + elu;
        case Activation::gelu:
            return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
        case Activation::sigmoid:
            return 1 / (1 + std::exp(-x));
        case Activation::exp:
            return std::exp(x);  // the maximum is subtracted by the test
        case Activation::sine:
            return std::sin(x);
    }
    return std::nan("");
}
double derivative(Activation activation, double x) {
    return (value(activation, x + 1e-5) - value(activation, x - 1e-5)) / 2e-5;
}

// What the activation sees: x, less the maximum of its group for exp.
Values seen(Activation activation, const Values& x, size_t group) {
    Values result = x;
    if (activation != Activation::exp) return result;
    for (size_t i = 0; i < x.size(); i += group) {
        const double top = *std::max_element(x.begin() + n(i), x.begin() + n(i + group));
        for (size_t j = i; j < i + group; ++j) result[j] -= top;
    }
    return result;
}

// Inputs away from zero, where relu and its kin have a kink that finite differences smear.
Values inputs(DType dtype, size_t count) {
    Values x = random_normal(count, 4);
    for (double& v : x) v += v < 0 ? -0.01 : 0.01;
    return rounded(dtype, x);
}

TEST(Activation, ForwardAndBackward) {
    for (const DType dtype : floating_types())
        for (const Activation activation : kActivations) {
            SCOPED_TRACE(fmt::format("{} activation {} seed {}", to_string(dtype),
                                     static_cast<int>(activation), seed()));
            const size_t rows = 23, group = 27, columns = 3 * group, stride = columns + 7;
            const Values x = inputs(dtype, rows * columns), dy = rounded(dtype, random_normal(x.size()));
            const Values in = seen(activation, x, group);
            Values y(x.size()), dx(x.size());
            for (size_t i = 0; i < x.size(); ++i) {
                y[i] = value(activation, in[i]);
                dx[i] = dy[i] * derivative(activation, in[i]);
            }
            const Buffer x_buffer(dtype, spread(x, columns, stride)),
                dy_buffer(dtype, spread(dy, columns, stride));
            const Buffer out(dtype, spread(Values(x.size(), std::nan("")), columns, stride));
            activation_forward(stream(), {n(rows), n(columns), n(group), dtype, activation, x_buffer.data(),
                                          n(stride), out.data(), n(stride)});
            EXPECT_LT(relative_error(gather(out.read(), columns, stride), y), tolerance(dtype));
            const Buffer contiguous = Buffer::poisoned(dtype, x.size());
            activation_backward(stream(),
                                {n(rows), n(columns), n(group), dtype, activation, x_buffer.data(), n(stride),
                                 dy_buffer.data(), n(stride), contiguous.data(), n(columns)});
            const double bound = std::max(tolerance(dtype), 1e-8);  // finite differences are right to this
            EXPECT_LT(relative_error(contiguous.read(), dx), bound);
            activation_backward(stream(),
                                {n(rows), n(columns), n(group), dtype, activation, x_buffer.data(), n(stride),
                                 dy_buffer.data(), n(stride), dy_buffer.data(), n(stride)});
            EXPECT_EQ(gather(dy_buffer.read(), columns, stride), contiguous.read());  // dx over dy
        }
}

// Far out, and at the values where a formula could divide infinity by infinity or lose its last digits.
TEST(Activation, Extremes) {
    const Values x{0, 1e-6, -1e-6, 5, -5, 12, -12, 40, -40, 87, -87, 200, -200, 1e4, -1e4};
    for (const DType dtype : {DType::f64, DType::f32})
        for (const Activation activation : kActivations) {
            const Values in = seen(activation, rounded(dtype, x), x.size());
            const Buffer x_buffer(dtype, x), dy(dtype, Values(x.size(), 1.0));
            const Buffer y = Buffer::poisoned(dtype, x.size()), dx = Buffer::poisoned(dtype, x.size());
            const int64_t count = n(x.size());
            activation_forward(stream(),
                               {1, count, count, dtype, activation, x_buffer.data(), count, y.data(), count});
            activation_backward(stream(), {1, count, count, dtype, activation, x_buffer.data(), count,
                                           dy.data(), count, dx.data(), count});
            const Values got = y.read(), slope = dx.read();
            for (size_t i = 0; i < x.size(); ++i) {
                SCOPED_TRACE(fmt::format("{} activation {} x {}", to_string(dtype),
                                         static_cast<int>(activation), x[i]));
                const double expected = value(activation, in[i]);
                EXPECT_NEAR(got[i], expected,
                            tolerance(dtype) * std::abs(expected) + 1e-7 * std::abs(x[i]) * 1e-6 + 1e-20);
                if (x[i] != 0 && std::abs(x[i]) > 1e-3) {
                    EXPECT_NEAR(slope[i], derivative(activation, in[i]),
                                1e-5 * std::max(1.0, std::abs(slope[i])));
                }
            }
        }
}

TEST(Activation, NotANumberStaysSo) {
    for (const DType dtype : floating_types())
        for (const Activation activation : kActivations) {
            const Buffer x(dtype, Values(20, std::nan(""))), y(dtype, Values(20, 0.0));
            activation_forward(stream(), {1, 20, 20, dtype, activation, x.data(), 20, y.data(), 20});
            for (const double v : y.read()) EXPECT_TRUE(std::isnan(v)) << static_cast<int>(activation);
        }
}

TEST(Glu, ForwardAndBackward) {
    for (const DType dtype : floating_types())
        for (const Activation activation : kActivations) {
            if (activation == Activation::exp) continue;  // has no group here: refused, see below
            SCOPED_TRACE(fmt::format("{} activation {} seed {}", to_string(dtype),
                                     static_cast<int>(activation), seed()));
            const size_t rows = 19, columns = 45, stride = 2 * columns + 1, count = rows * columns;
            const Values a = inputs(dtype, count), b = rounded(dtype, random_normal(count)),
                         dy = rounded(dtype, random_normal(count));
            Values y(count), da(count), db(count);
            for (size_t i = 0; i < count; ++i) {
                y[i] = value(activation, a[i]) * b[i];
                da[i] = dy[i] * b[i] * derivative(activation, a[i]);
                db[i] = dy[i] * value(activation, a[i]);
            }
            // The two halves of one projection: [rows, a | b | gap].
            Values both(rows * stride, 77), expected(rows * stride, 77);
            for (size_t i = 0; i < count; ++i) {
                const size_t at = i / columns * stride + i % columns;
                both[at] = a[i], both[at + columns] = b[i];
                expected[at] = da[i], expected[at + columns] = db[i];
            }
            const Buffer in(dtype, both), dy_buffer(dtype, dy), out = Buffer::poisoned(dtype, count);
            glu_forward(stream(), {n(rows), n(columns), dtype, activation, in.data(), n(stride),
                                   in.at(columns), n(stride), out.data()});
            EXPECT_LT(relative_error(out.read(), y), tolerance(dtype));
            for (const bool again : {false, true}) {
                const Buffer d(dtype, spread(Values(2 * count, std::nan("")), 2 * columns, stride)),
                    y_again = Buffer::poisoned(dtype, count);
                glu_backward(stream(), {n(rows), n(columns), dtype, activation, in.data(), n(stride),
                                        in.at(columns), n(stride), dy_buffer.data(), d.data(), n(stride),
                                        d.at(columns), n(stride), again ? y_again.data() : nullptr});
                EXPECT_LT(relative_error(gather(d.read(), 2 * columns, stride),
                                         gather(expected, 2 * columns, stride)),
                          std::max(tolerance(dtype), 1e-8));
                if (again) {
                    EXPECT_EQ(y_again.read(), out.read());
                }
            }
        }
}

TEST(Activation, ExpNeedsAGroup) {
    const Buffer x(DType::f32, Values(8, 1.0));
    EXPECT_THROW(
        activation_forward(stream(), {1, 8, 3, DType::f32, Activation::exp, x.data(), 8, x.data(), 8}),
        Error);
    EXPECT_THROW(
        glu_forward(stream(), {1, 4, DType::f32, Activation::exp, x.data(), 8, x.data(), 8, x.data()}),
        Error);
}

}  // namespace
}  // namespace levin::kernels::test
