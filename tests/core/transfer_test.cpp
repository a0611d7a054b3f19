// Uploads and readouts that nobody waits for. On a GPU (label gpu) with the queue kept busy.
#include "core/transfer.h"

#include <gtest/gtest.h>

#include <numeric>

#include "core/ops.h"
#include "tests/device.h"

namespace levin {
namespace {

using test::device;

// Work that keeps a GPU busy for some milliseconds.
void keep_busy() {
    const Tensor a = Tensor::full({2048, 1024}, 0.5, DType::f32, device());
    for (int i = 0; i < (device().is_cpu() ? 1 : 20); ++i) {
        NoGradient off;
        ops::linear(Variable(a), Variable(a));
    }
}

TEST(Transfer, UploadsKeepTheValuesOfTheCall) {
    keep_busy();
    std::vector<Tensor> sent;
    std::vector<int32_t> values(3000);
    for (int32_t i = 0; i < 50; ++i) {
        std::iota(values.begin(), values.end(), i * 10000);
        sent.push_back(upload({3000}, values, device()));
        std::fill(values.begin(), values.end(), -1);  // what the caller does with it afterwards
    }
    for (int32_t i = 0; i < 50; ++i) {
        std::iota(values.begin(), values.end(), i * 10000);
        EXPECT_EQ(sent[static_cast<size_t>(i)].to_host<int32_t>(), values);
    }
    EXPECT_EQ(upload({0}, std::vector<float>{}, device()).count(), 0);
    EXPECT_THROW(upload({3}, std::vector<float>{1}, device()), Error);
}

TEST(Transfer, ReadoutsSeeTheValuesOfTheirPlaceInTheQueue) {
    Readout even(device()), odd(device());
    Tensor sum = Tensor::zeros({1}, DType::f64, device());
    for (int step = 0; step < 20; ++step) {
        keep_busy();
        sum.fill(step);
        const Tensor half = Tensor::full({1}, step / 2.0, DType::f32, device());
        Readout& now = step % 2 == 0 ? even : odd;
        now.start({sum, half});
        if (step == 0) continue;
        const auto before = (step % 2 == 0 ? odd : even).values();
        EXPECT_EQ(before, (std::vector<double>{step - 1.0, (step - 1) / 2.0}));
    }
    EXPECT_EQ(odd.values()[0], 19);
    EXPECT_TRUE(odd.ready());
    even.start(std::vector<Tensor>(100, sum));  // more than there was room for
    EXPECT_EQ(even.values(), std::vector<double>(100, 19));
    EXPECT_THROW(even.start({Tensor::zeros({2}, DType::f32, device())}), Error);
}

TEST(Transfer, EventsMeasureTime) {
    kernels::StreamEvent start(device()), stop(device());
    EXPECT_TRUE(start.done());
    start.record(Tensor::zeros({1}, DType::f32, device()).stream());
    keep_busy();
    stop.record(Tensor::zeros({1}, DType::f32, device()).stream());
    EXPECT_GT(stop.ms_since(start), 0);
    EXPECT_LT(stop.ms_since(start), 60000);
    EXPECT_TRUE(stop.done());
}

}  // namespace
}  // namespace levin
