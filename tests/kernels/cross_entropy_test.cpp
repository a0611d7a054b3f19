#include "kernels/cross_entropy.h"

#include "tests/kernels/kernel_test.h"

namespace levin::kernels::test {
namespace {

using Values = std::vector<double>;

struct Case {
    DType dtype;
    size_t rows, vocab, stride;
    double z_loss, gradient_scale, spread;
};

struct Result {
    Values loss, logits;
};

Result run(const Case& t, const Values& logits, const Values& targets) {
    const Buffer z(t.dtype, logits), ids(DType::i32, targets),
        loss = Buffer::poisoned(accumulator_of(t.dtype), t.rows);
    cross_entropy(stream(), {static_cast<int64_t>(t.rows), static_cast<int64_t>(t.vocab), t.dtype, t.z_loss,
                             t.gradient_scale, z.data(), static_cast<int64_t>(t.stride), ids.as<int32_t>(),
                             loss.data()});
    return {loss.read(), z.read()};
}

void check(const Case& t) {
    SCOPED_TRACE(fmt::format("{} {} x {} (stride {}) z_loss {} scale {} spread {} seed {}",
                             to_string(t.dtype), t.rows, t.vocab, t.stride, t.z_loss, t.gradient_scale,
                             t.spread, seed()));
    Values logits = rounded(t.dtype, random_normal(t.rows * t.stride, t.spread)), targets(t.rows),
           loss(t.rows, 0.0);
    std::uniform_int_distribution<int> pick(0, static_cast<int>(t.vocab) - 1);
    for (size_t r = 0; r < t.rows; ++r) {
        targets[r] = r % 5 == 3 ? -1 : pick(generator());
        for (size_t c = t.vocab; c < t.stride; ++c)
            logits[r * t.stride + c] = 8192;  // would win if it were looked at
    }
    Values gradient(logits.size(), 0.0);
    for (size_t r = 0; r < t.rows; ++r) {
        if (targets[r] < 0) continue;
        const double* z = logits.data() + r * t.stride;
        const auto target = static_cast<size_t>(targets[r]);
        const double top = *std::max_element(z, z + t.vocab);
        double sum = 0;
        for (size_t c = 0; c < t.vocab; ++c) sum += std::exp(z[c] - top);
        const double lse = top + std::log(sum);
        loss[r] = lse - z[target] + t.z_loss * lse * lse;
        for (size_t c = 0; c < t.vocab; ++c)
            gradient[r * t.stride + c] =
                t.gradient_scale * ((1 + 2 * t.z_loss * lse) * std::exp(z[c] - lse) - (c == target ? 1 : 0));
    }
    const Result result = run(t, logits, targets);
    EXPECT_LT(relative_error(result.loss, loss), tolerance(accumulator_of(t.dtype)));
    if (t.gradient_scale == 0) {
        EXPECT_EQ(result.logits, logits);  // left as they were
        return;
    }
    EXPECT_LT(relative_error(result.logits, gradient), tolerance(t.dtype));
    for (size_t r = 0; r < t.rows; ++r)
        for (size_t c = targets[r] < 0 ? 0 : t.vocab; c < t.stride; ++c)
            EXPECT_EQ(result.logits[r * t.stride + c], 0);
}

TEST(CrossEntropy, LossAndGradientInPlace) {
    for (const DType dtype : floating_types())
        for (const double z_loss : {0.0, 1e-2}) {
            check({dtype, 17, 256, 256, z_loss, 0.37, 2});
            check({dtype, 11, 101, 128, z_loss, 1, 5});
            check({dtype, 6, 4099, 4104, z_loss, 0.01, 3});  // several blocks of columns
            check({dtype, 7, 1500, 1501, z_loss, 0, 1});     // evaluation: loss alone
            check({dtype, 5, 1, 4, z_loss, 1, 1});
            // A row in the registers of one block, of two, four and eight, ragged, and one too long for them.
            check({dtype, 7, 8185, 8192, z_loss, 1, 3});
            check({dtype, 6, 16379, 16384, z_loss, 1, 3});
            check({dtype, 5, 16390, 16392, z_loss, 1, 3});
            check({dtype, 3, 64000, 64000, z_loss, 1, 3});
            check({dtype, 2, 100003, 100008, z_loss, 1, 3});
        }
}

TEST(CrossEntropy, LargeLogitsDoNotOverflow) {
    for (const DType dtype : floating_types()) {
        check({dtype, 9, 2100, 2100, 0, 1, 300});
        const Result sure = run({dtype, 1, 3, 3, 0, 1, 0}, {5000, -5000, 0}, {0});
        EXPECT_EQ(sure.loss[0], 0);
        EXPECT_EQ(sure.logits, (Values{0, 0, 0}));
        const Result wrong = run({dtype, 1, 3, 3, 0, 1, 0}, {5000, -5000, 0}, {1});
        EXPECT_EQ(wrong.loss[0], rounded(dtype, {5000})[0] - rounded(dtype, {-5000})[0]);
        EXPECT_EQ(wrong.logits, (Values{1, -1, 0}));
    }
}

TEST(CrossEntropy, BadNumbersAreSeen) {
    for (const DType dtype : floating_types()) {
        EXPECT_TRUE(std::isnan(run({dtype, 1, 4, 4, 0, 1, 0}, {0, std::nan(""), 1, 2}, {0}).loss[0]));
        Values masked(3000, -std::numeric_limits<double>::infinity());
        masked[2500] = 1.5;  // whole blocks of -infinity: possible, and no NaN
        EXPECT_EQ(run({dtype, 1, 3000, 3000, 0, 1, 0}, masked, {2500}).loss[0], 0);
    }
}

}  // namespace
}  // namespace levin::kernels::test
