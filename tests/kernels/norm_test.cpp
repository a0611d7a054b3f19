#include "kernels/norm.h"

#include "tests/kernels/kernel_test.h"

namespace levin::kernels::test {
namespace {

using Values = std::vector<double>;

struct Reference {
    Values y, mean, rstd, dx, dweight, dbias;
};

// Closed forms in float64. xhat = (x - mean) rstd; dx = (g - mean(g) [layer] - xhat mean(g xhat)) rstd, g =
// dy weight.
Reference reference(WeightedNorm kind, size_t rows, size_t width, double eps, const Values& x,
                    const Values& weight, const Values& bias, const Values& dy) {
    Reference result;
    result.dweight.assign(width, 0);
    result.dbias.assign(width, 0);
    const double n = static_cast<double>(width);
    for (size_t r = 0; r < rows; ++r) {
        double mean = 0, variance = 0, along = 0, offset = 0;
        if (kind == WeightedNorm::layer)
            for (size_t c = 0; c < width; ++c) mean += x[r * width + c] / n;
        for (size_t c = 0; c < width; ++c) variance += std::pow(x[r * width + c] - mean, 2) / n;
        const double rstd = 1 / std::sqrt(variance + eps);
        result.mean.push_back(mean);
        result.rstd.push_back(rstd);
        for (size_t c = 0; c < width; ++c) {
            const double xhat = (x[r * width + c] - mean) * rstd, d = dy[r * width + c];
            result.y.push_back(xhat * weight[c] + (kind == WeightedNorm::layer ? bias[c] : 0));
            result.dweight[c] += d * xhat;
            result.dbias[c] += d;
            along += d * weight[c] * xhat / n;
            if (kind == WeightedNorm::layer) offset += d * weight[c] / n;
        }
        for (size_t c = 0; c < width; ++c)
            result.dx.push_back(
                (dy[r * width + c] * weight[c] - offset - (x[r * width + c] - mean) * rstd * along) * rstd);
    }
    return result;
}

void check(WeightedNorm kind, DType dtype, size_t rows, size_t width, double beta) {
    SCOPED_TRACE(fmt::format("kind {} {} {} x {} beta {} seed {}", static_cast<int>(kind), to_string(dtype),
                             rows, width, beta, seed()));
    const bool layer = kind == WeightedNorm::layer;
    const DType acc = accumulator_of(dtype);
    const double eps = 1e-5;
    Values x = random_normal(rows * width, 2);
    for (double& v : x) v += 0.5;
    x = rounded(dtype, x);
    const Values weight = rounded(dtype, random_normal(width)), bias = rounded(dtype, random_normal(width));
    const Values dy = rounded(dtype, random_normal(rows * width));
    Reference expected = reference(kind, rows, width, eps, x, weight, bias, dy);

    const auto n = [](size_t v) { return static_cast<int64_t>(v); };
    const Buffer x_buffer(dtype, x), weight_buffer(dtype, weight), bias_buffer(dtype, bias);
    const Buffer y = Buffer::poisoned(dtype, rows * width), mean = Buffer::poisoned(acc, rows),
                 rstd = Buffer::poisoned(acc, rows);
    norm_forward(stream(), {kind, n(rows), n(width), eps, dtype, x_buffer.data(), weight_buffer.data(),
                            layer ? bias_buffer.data() : nullptr, y.data(), layer ? mean.data() : nullptr,
                            rstd.data()});
    EXPECT_LT(relative_error(y.read(), expected.y), tolerance(dtype));
    EXPECT_LT(relative_error(rstd.read(), expected.rstd), tolerance(acc));
    if (layer) {
        EXPECT_LT(relative_error(mean.read(), expected.mean), tolerance(acc) * 10);
    }

    const Values old = beta != 0 ? rounded(acc, random_normal(width)) : Values(width, std::nan(""));
    if (beta != 0)
        for (size_t c = 0; c < width; ++c)
            expected.dweight[c] += beta * old[c], expected.dbias[c] += beta * old[c];
    for (const bool in_place : {false, true}) {
        const Buffer dy_buffer(dtype, dy), dx = Buffer::poisoned(dtype, rows * width), dweight(acc, old),
                                           dbias(acc, old);
        const Buffer& out = in_place ? dy_buffer : dx;
        norm_backward(stream(), {kind, n(rows), n(width), dtype, x_buffer.data(), weight_buffer.data(),
                                 layer ? mean.data() : nullptr, rstd.data(), dy_buffer.data(), out.data(),
                                 dweight.data(), layer ? dbias.data() : nullptr, beta});
        EXPECT_LT(relative_error(out.read(), expected.dx), tolerance(dtype));
        EXPECT_LT(relative_error(dweight.read(), expected.dweight), tolerance(acc));
        if (layer) {
            EXPECT_LT(relative_error(dbias.read(), expected.dbias), tolerance(acc));
        }
    }
}

TEST(Norm, RmsAndLayer) {
    for (const WeightedNorm kind : {WeightedNorm::rms, WeightedNorm::layer})
        for (const DType dtype : floating_types()) {
            check(kind, dtype, 5, 33, 0);
            check(kind, dtype, 100, 192, 1);
            check(kind, dtype, 700, 19, 0.5);
            check(kind, dtype, 3, 1031, 0);
        }
}

// The gradient of the weight is the sum over rows in an order that the number of threads does not change.
TEST(Norm, WeightGradientHasTheSameBitsAtAnyNumberOfThreads) {
    const int64_t rows = 900, width = 70;
    const auto count = static_cast<size_t>(rows * width);
    const Buffer x(DType::f32, random_normal(count)), dy(DType::f32, random_normal(count));
    const Buffer weight(DType::f32, random_normal(70)), rstd(DType::f32, Values(900, 1.0));
    Values first;
    for (int trial = 0; trial < 3; ++trial) {
        const Threads threads(trial + 1);
        const Buffer dx = Buffer::poisoned(DType::f32, count), dweight = Buffer::poisoned(DType::f32, 70);
        norm_backward(stream(), {WeightedNorm::rms, rows, width, DType::f32, x.data(), weight.data(), nullptr,
                                 rstd.data(), dy.data(), dx.data(), dweight.data(), nullptr, 0});
        if (trial == 0) first = dweight.read();
        EXPECT_EQ(dweight.read(), first);
    }
}

}  // namespace
}  // namespace levin::kernels::test
