// Gradients of a small network through hooks and buckets against the sum of the ranks' gradients, formed
// serially on every rank.
#include "parallel/data_parallel.h"

#include <gtest/gtest.h>

#include <cstring>

#include "core/ops.h"
#include "core/random.h"
#include "parallel/world.h"

namespace levin {
namespace {

constexpr int64_t kWidth = 24, kLayers = 5, kTokens = 10;

Tensor normal(const std::string& name, const Shape& shape, DType dtype) {
    Tensor tensor = Tensor::empty(shape, dtype);
    fill_normal(tensor, Random(3, name), 0.5);
    return tensor;
}

std::vector<Variable> make_parameters(DType dtype, int rank = 0) {
    std::vector<Variable> parameters;
    for (int64_t i = 0; i < kLayers; ++i)
        parameters.emplace_back(normal(fmt::format("weight {} {}", i, rank), {kWidth, kWidth}, dtype), true);
    parameters.emplace_back(normal(fmt::format("unused {}", rank), {7, 3}, dtype), true);
    return parameters;
}

// One forward and backward of x -> silu(x W^T) repeated, on the data of (rank, micro-batch). The first weight
// is used again at the end, like a tied embedding.
void run(const std::vector<Variable>& parameters, int rank, int micro_batch, DType dtype) {
    Variable x(normal(fmt::format("data {} {}", rank, micro_batch), {kTokens, kWidth}, dtype));
    for (int64_t i = 0; i < kLayers; ++i)
        x = ops::activation(ops::linear(x, parameters[static_cast<size_t>(i)]), kernels::Activation::silu);
    x = ops::linear(x, parameters[0]);
    backward(x, normal(fmt::format("seed {} {}", rank, micro_batch), {kTokens, kWidth}, dtype));
}

bool same_bits(const Tensor& a, const Tensor& b) {
    return a.dtype() == b.dtype() && a.count() == b.count() &&
           std::memcmp(a.data(), b.data(), a.bytes()) == 0;
}

// ((rank 0 + rank 1) + ..): what reducing the ranks' accumulated gradients must give, to the bit.
std::vector<Tensor> reference(DType dtype, int ranks, int micro_batches) {
    std::vector<Tensor> sums;
    for (int r = 0; r < ranks; ++r) {
        std::vector<Variable> parameters = make_parameters(dtype);
        for (int m = 0; m < micro_batches; ++m) run(parameters, r, m, dtype);
        for (size_t i = 0; i < parameters.size(); ++i) {
            const Tensor gradient = parameters[i].gradient().defined()
                                        ? parameters[i].gradient()
                                        : Tensor::zeros(parameters[i].shape(), accumulator_of(dtype));
            if (r == 0) {
                sums.push_back(gradient.clone());
                continue;
            }
            for (int64_t k = 0; k < gradient.count(); ++k) {
                if (dtype == DType::f64)
                    sums[i].data<double>()[k] += gradient.data<double>()[k];
                else
                    sums[i].data<float>()[k] += gradient.data<float>()[k];
            }
        }
    }
    return sums;
}

class DataParallelTest : public testing::TestWithParam<DType> {
protected:
    World& world = World::current();
};

TEST_P(DataParallelTest, GradientsAreTheSumOverRanksForEveryBucketSize) {
    const DType dtype = GetParam();
    const int micro_batches = 3;
    const std::vector<Tensor> expected = reference(dtype, world.size(), micro_batches);
    const size_t one = static_cast<size_t>(kWidth * kWidth) * size_of(accumulator_of(dtype));
    for (size_t bucket : {size_t{1}, one, one * 2 + 100, one * 3, size_t{1} << 30}) {
        std::vector<Variable> parameters = make_parameters(dtype);
        DataParallel data_parallel(parameters, world.communicator(), bucket);
        if (bucket == 1) {
            EXPECT_EQ(data_parallel.bucket_count(), parameters.size());
        }
        if (bucket == size_t{1} << 30) {
            EXPECT_EQ(data_parallel.bucket_count(), 1u);
        }
        for (int update = 0; update < 2; ++update) {  // the second finds the buffers dirty
            for (Variable& parameter : parameters) parameter.clear_gradient();
            for (int m = 0; m < micro_batches; ++m) {
                if (m == micro_batches - 1) data_parallel.reduce_next_backward();
                run(parameters, world.rank(), m, dtype);
            }
            data_parallel.finish();
            for (size_t i = 0; i < parameters.size(); ++i)
                ASSERT_TRUE(same_bits(parameters[i].gradient(), expected[i])) << i << " bucket " << bucket;
        }
    }
}

TEST_P(DataParallelTest, ReductionStartsDuringBackward) {
    const DType dtype = GetParam();
    std::vector<Variable> parameters = make_parameters(dtype);
    parameters.pop_back();  // the one that no backward completes
    DataParallel data_parallel(parameters, world.communicator(), 1);
    ASSERT_EQ(data_parallel.bucket_count(), static_cast<size_t>(kLayers));
    data_parallel.reduce_next_backward();
    run(parameters, world.rank(), 0, dtype);
    data_parallel.finish();
    EXPECT_EQ(data_parallel.started_early(), static_cast<size_t>(kLayers));
}

// What crosses as bf16: each rank's gradient rounded, summed in f32, rounded again. f64 crosses as it is.
TEST_P(DataParallelTest, GradientsMayCrossAsBf16) {
    const DType dtype = GetParam();
    if (world.size() == 1) return;  // nothing crosses
    std::vector<Tensor> expected;
    for (int r = 0; r < world.size(); ++r) {
        std::vector<Variable> parameters = make_parameters(dtype);
        run(parameters, r, 0, dtype);
        run(parameters, r, 1, dtype);
        for (size_t i = 0; i < parameters.size() - 1; ++i) {
            Tensor gradient = parameters[i].gradient();
            if (dtype != DType::f64) gradient = gradient.to(DType::bf16).to(DType::f32);
            if (r == 0) {
                expected.push_back(gradient.clone());
                continue;
            }
            const std::vector<double> more = gradient.to_vector();
            for (size_t k = 0; k < more.size(); ++k) {
                if (dtype == DType::f64)
                    expected[i].data<double>()[k] += more[k];
                else
                    expected[i].data<float>()[k] += static_cast<float>(more[k]);
            }
        }
    }
    if (dtype != DType::f64)
        for (Tensor& sum : expected) sum = sum.to(DType::bf16).to(DType::f32);
    for (size_t bucket : {size_t{1}, size_t{5000}, size_t{1} << 30}) {
        std::vector<Variable> parameters = make_parameters(dtype);
        DataParallel data_parallel(parameters, world.communicator(),
                                   {.bucket_bytes = bucket, .stage = 0, .units = {}, .reduce_in_bf16 = true});
        run(parameters, world.rank(), 0, dtype);
        data_parallel.reduce_next_backward();
        run(parameters, world.rank(), 1, dtype);
        data_parallel.finish();
        for (size_t i = 0; i < expected.size(); ++i)
            ASSERT_TRUE(same_bits(parameters[i].gradient(), expected[i])) << i << " bucket " << bucket;
    }
}

TEST_P(DataParallelTest, MixedTypesGetTheirOwnBuckets) {
    const DType dtype = GetParam();
    std::vector<Variable> parameters = make_parameters(dtype);
    parameters.emplace_back(normal("other", {5}, dtype == DType::f64 ? DType::f32 : DType::f64), true);
    DataParallel data_parallel(parameters, world.communicator(), size_t{1} << 30);
    EXPECT_EQ(data_parallel.bucket_count(), 2u);
    data_parallel.reduce_next_backward();
    run(parameters, world.rank(), 0, dtype);
    data_parallel.finish();
    const std::vector<Tensor> expected = reference(dtype, world.size(), 1);
    for (size_t i = 0; i < expected.size(); ++i)
        EXPECT_TRUE(same_bits(parameters[i].gradient(), expected[i])) << i;
    for (double value : parameters.back().gradient().to_vector()) EXPECT_EQ(value, 0);
}

TEST_P(DataParallelTest, ParametersOfRankZeroReachAll) {
    const DType dtype = GetParam();
    std::vector<Variable> parameters = make_parameters(dtype, world.rank());
    DataParallel data_parallel(parameters, world.communicator(), 4096);
    data_parallel.broadcast_parameters();
    const std::vector<Variable> root = make_parameters(dtype, 0);
    for (size_t i = 0; i < parameters.size(); ++i)
        EXPECT_TRUE(same_bits(parameters[i].value(), root[i].value()));
}

TEST_P(DataParallelTest, ASecondBackwardAfterTheReductionIsRefused) {
    const DType dtype = GetParam();
    std::vector<Variable> parameters = make_parameters(dtype);
    DataParallel data_parallel(parameters, world.communicator(), 4096);
    EXPECT_THROW(data_parallel.finish(), Error);
    data_parallel.reduce_next_backward();
    EXPECT_THROW(data_parallel.reduce_next_backward(), Error);
    run(parameters, world.rank(), 0, dtype);
    EXPECT_THROW(run(parameters, world.rank(), 1, dtype), Error);
    data_parallel.finish();
}

INSTANTIATE_TEST_SUITE_P(, DataParallelTest, testing::Values(DType::f64, DType::f32, DType::bf16),
                         [](const auto& info) { return to_string(info.param); });

}  // namespace
}  // namespace levin
