// ZeRO: whatever a rank keeps for itself, training goes on with the same bits.
#include <gtest/gtest.h>

#include <cstring>

#include "core/memory.h"
#include "core/ops.h"
#include "core/random.h"
#include "parallel/agreement.h"
#include "parallel/data_parallel.h"
#include "parallel/world.h"

namespace levin {
namespace {

constexpr int64_t kWidth = 40, kLayers = 6, kTokens = 10;

Tensor normal(const std::string& name, const Shape& shape, DType dtype) {
    Tensor tensor = Tensor::empty(shape, dtype);
    fill_normal(tensor, Random(3, name), 0.2);
    return tensor;
}

// Layer i has a matrix and, every other one, a bias in the accumulator type, as theta is in a bf16 model.
struct Network {
    explicit Network(DType dtype) : type(dtype) {
        for (int64_t i = 0; i < kLayers; ++i) {
            parameters.emplace_back(normal(fmt::format("weight {}", i), {kWidth, kWidth}, dtype), true);
            units.push_back(i);
            if (i % 2 == 0) {
                parameters.emplace_back(
                    normal(fmt::format("scale {}", i), {kWidth, 3}, accumulator_of(dtype)), true);
                units.push_back(i);
            }
        }
        parameters.emplace_back(normal("unused", {7, 3}, dtype), true);
        units.push_back(-1);
    }

    void run(int rank, int number) const {
        Variable x(normal(fmt::format("data {} {}", rank, number), {kTokens, kWidth}, type));
        std::vector<Variable> roots;
        std::vector<Tensor> seeds;
        for (size_t i = 0; i < parameters.size() - 1; ++i) {
            if (parameters[i].dim(1) == kWidth) {
                x = ops::activation(ops::linear(x, parameters[i]), kernels::Activation::silu);
                continue;
            }
            const DType wide = parameters[i].dtype();
            const Variable narrow(normal(fmt::format("side {} {}", rank, number), {kTokens, 3}, wide));
            roots.push_back(ops::linear(narrow, parameters[i]));
            seeds.push_back(normal(fmt::format("side seed {}", rank), {kTokens, kWidth}, wide));
        }
        x = ops::linear(x, parameters[0]);  // used again at the end, like a tied embedding
        roots.push_back(x);
        seeds.push_back(normal(fmt::format("seed {} {}", rank, number), {kTokens, kWidth}, type));
        backward(roots, seeds);
    }

    DType type;
    std::vector<Variable> parameters;
    std::vector<int64_t> units;
};

// value -= 0.1 * gradient
void descend(const OwnedRange& range) {
    const std::vector<double> value = range.value.to_vector(), gradient = range.gradient.to_vector();
    std::vector<double> next;
    for (size_t i = 0; i < value.size(); ++i) next.push_back(value[i] - 0.1 * gradient[i]);
    Tensor target = range.value;
    target.copy_from(Tensor::from({range.count}, next));
}

// Parameter values after a few updates.
std::vector<Tensor> train(const std::shared_ptr<Communicator>& ranks, DType dtype,
                          const DataParallel::Options& wanted, int micro_batches) {
    Network network(dtype);
    DataParallel::Options options = wanted;
    if (options.units.empty()) options.units = network.units;
    DataParallel data_parallel(network.parameters, ranks, options);
    for (int update = 0; update < 4; ++update) {
        for (int m = 0; m < micro_batches; ++m) {
            if (m == micro_batches - 1) data_parallel.reduce_next_backward();
            network.run(ranks->rank(), update * 10 + m);
        }
        data_parallel.finish();
        // What is needed first is updated first, and travels while the rest is updated.
        for (const bool first : {true, false}) {
            for (const OwnedRange& range : data_parallel.owned())
                if (range.first == first) descend(range);
            if (first && update != 1) data_parallel.publish_first();
        }
        data_parallel.publish();
        for (Variable& parameter : network.parameters) parameter.clear_gradient();
    }
    std::vector<Tensor> values;
    for (const Variable& parameter : network.parameters) values.push_back(parameter.value().clone());
    return values;
}

bool same_bits(const Tensor& a, const Tensor& b) {
    return a.dtype() == b.dtype() && a.count() == b.count() &&
           std::memcmp(a.data(), b.data(), a.bytes()) == 0;
}

class Zero : public testing::TestWithParam<DType> {
protected:
    World& world = World::current();
};

TEST_P(Zero, EveryStageTrainsWithTheSameBits) {
    const auto flat = world.communicator();
    // Four ranks as two hosts: another order of summation, the same at all stages.
    const auto hosts = flat->split(0, world.rank(), "hosts", {.host = world.rank() / 2});
    const struct {
        int micro_batches;
        bool bf16;
        std::shared_ptr<Communicator> ranks;
    } cases[] = {{1, false, flat}, {3, false, flat}, {3, true, flat}, {2, false, hosts}};
    for (const auto& [micro_batches, bf16, ranks] : cases) {
        DataParallel::Options options{.reduce_in_bf16 = bf16};
        const std::vector<Tensor> expected = train(ranks, GetParam(), options, micro_batches);
        for (const int stage : {1, 2, 3})
            for (const size_t bucket : {size_t{1}, size_t{9000}, size_t{64} << 20}) {
                options.bucket_bytes = bucket;
                options.stage = stage;
                const std::vector<Tensor> values = train(ranks, GetParam(), options, micro_batches);
                for (size_t i = 0; i < values.size(); ++i)
                    ASSERT_TRUE(same_bits(values[i], expected[i]))
                        << "stage " << stage << " bucket " << bucket << " bf16 " << bf16 << " parameter "
                        << i;
            }
    }
}

// What is formed as bf16 in the first place: the bits of rounding on the way, at every stage.
TEST_P(Zero, GradientsFormedAsBf16TrainWithTheSameBits) {
    DataParallel::Options options{.reduce_in_bf16 = true};
    const std::vector<Tensor> expected = train(world.communicator(), GetParam(), options, 1);
    for (const Variable& parameter : Network(GetParam()).parameters)
        options.formed_in_bf16.push_back(parameter.dtype() == DType::bf16);
    options.formed_in_bf16[0] = false;  // used twice
    for (const int stage : {0, 1, 2, 3})
        for (const size_t bucket : {size_t{1}, size_t{9000}, size_t{64} << 20}) {
            options.bucket_bytes = bucket;
            options.stage = stage;
            const std::vector<Tensor> values = train(world.communicator(), GetParam(), options, 1);
            for (size_t i = 0; i < values.size(); ++i)
                ASSERT_TRUE(same_bits(values[i], expected[i]))
                    << "stage " << stage << " bucket " << bucket << " parameter " << i;
            Network network(GetParam());
            options.units = network.units;
            const DataParallel data_parallel(network.parameters, world.communicator(), options);
            for (const OwnedRange& range : data_parallel.owned()) {
                const DType wide = accumulator_of(network.parameters[range.parameter].dtype());
                const bool narrow =
                    options.formed_in_bf16[range.parameter] || (stage > 0 && wide == DType::f32);
                EXPECT_EQ(range.gradient.dtype(), narrow ? DType::bf16 : wide) << range.parameter;
            }
        }
}

// Embedding and head are one unit with a bucket at each end: none of it may leave before all of it is
// updated.
TEST_P(Zero, AUnitWithBucketsAtBothEndsTrainsWithTheSameBits) {
    std::vector<int64_t> units = Network(GetParam()).units;
    for (int64_t& unit : units) unit = unit <= 0 || unit == kLayers - 1 ? -1 : 1;
    const std::vector<Tensor> expected = train(world.communicator(), GetParam(), {}, 1);
    for (const size_t bucket : {size_t{1}, size_t{9000}}) {
        const std::vector<Tensor> values =
            train(world.communicator(), GetParam(), {.bucket_bytes = bucket, .stage = 3, .units = units}, 1);
        for (size_t i = 0; i < values.size(); ++i)
            ASSERT_TRUE(same_bits(values[i], expected[i])) << "bucket " << bucket << " parameter " << i;
    }
}

TEST_P(Zero, TheSharesOfAllRanksMakeTheWhole) {
    Network network(GetParam());
    for (const int stage : {1, 2, 3}) {
        const DataParallel sharded(network.parameters, world.communicator(),
                                   {.bucket_bytes = 9000, .stage = stage, .units = network.units});
        double mine = 0;
        for (const OwnedRange& range : sharded.owned()) {
            EXPECT_EQ(range.value.count(), range.count);
            EXPECT_EQ(range.gradient.count(), range.count);
            mine += static_cast<double>(range.count);
        }
        double all = 0;
        for (const Variable& parameter : network.parameters)
            all += static_cast<double>(parameter.value().count());
        EXPECT_EQ(sum_over(world.all(), mine), all);
        // Padding apart, nobody has more than its part.
        EXPECT_LE(mine, all / world.size() + 64.0 * static_cast<double>(sharded.bucket_count()));
    }
    const DataParallel whole(network.parameters, world.communicator(),
                             {.bucket_bytes = 9000, .stage = 0, .units = {}});
    double all = 0;
    for (int r = 0; r < world.size(); ++r)
        for (const OwnedRange& range : whole.share_of(r)) all += static_cast<double>(range.count);
    double count = 0;
    for (const OwnedRange& range : whole.owned()) count += static_cast<double>(range.count);
    EXPECT_EQ(all, count);
}

TEST_P(Zero, StageThreeHoldsAFewLayersAtATime) {
    if (world.size() == 1) return;  // a rank alone gathers nothing
    Network network(GetParam());
    DataParallel sharded(network.parameters, world.communicator(),
                         {.bucket_bytes = size_t{64} << 20, .stage = 3, .units = network.units});
    const auto live = [] {
        const MemoryStatistics now = memory_statistics(Device{});
        return now.live[static_cast<int>(MemoryCategory::parameters)] +
               now.live[static_cast<int>(MemoryCategory::gradients)];
    };
    const size_t layer = static_cast<size_t>(kWidth * (kWidth + 3)) * size_of(GetParam()) + 1024;
    const size_t start = live();
    for (int update = 0; update < 3; ++update) {
        NoGradient off;
        Variable x(normal("data", {kTokens, kWidth}, GetParam()));
        for (size_t i = 0; i < network.parameters.size() - 1; ++i) {
            if (network.parameters[i].dim(1) != kWidth) continue;
            x = ops::linear(x, network.parameters[i]);
            EXPECT_LE(live(), start + 3 * layer) << "update " << update << " parameter " << i;
        }
        sharded.publish();
    }
}

// Through whole updates, forward and backward: what is gathered is what the pass has come to, what it came
// from and what comes next.
TEST_P(Zero, StageThreeHoldsAFewLayersThroughAnUpdate) {
    if (world.size() == 1) return;
    Network network(GetParam());
    DataParallel sharded(network.parameters, world.communicator(),
                         {.bucket_bytes = size_t{64} << 20, .stage = 3, .units = network.units});
    const auto live = [] {
        return memory_statistics(Device{}).live[static_cast<int>(MemoryCategory::parameters)];
    };
    const size_t layer = static_cast<size_t>(kWidth * kWidth) * size_of(GetParam()) +
                         static_cast<size_t>(kWidth * 3) * size_of(accumulator_of(GetParam())) + 1024;
    const size_t shares = live();
    size_t peak = 0;
    const auto look = [&] { peak = std::max(peak, live()); };
    for (int update = 0; update < 3; ++update) {
        peak = 0;
        sharded.reduce_next_backward();
        Variable x(normal("data", {kTokens, kWidth}, GetParam()));
        for (const Variable& parameter : network.parameters) {
            if (parameter.dim(1) != kWidth) continue;
            x = ops::linear(x, parameter);
            look();
            x = record("look", {x}, x.value(), [&](const Tensor& dy, Gradients& inputs) {
                look();
                inputs.add(0, dy);
            });
        }
        backward(x, normal("seed", {kTokens, kWidth}, GetParam()));
        sharded.finish();
        look();
        for (const OwnedRange& range : sharded.owned())
            if (range.first) descend(range);
        sharded.publish_first();
        look();
        for (const OwnedRange& range : sharded.owned())
            if (!range.first) descend(range);
        sharded.publish();
        look();
        for (Variable& parameter : network.parameters) parameter.clear_gradient();
        // The first round goes by the order of the parameters, which backward does not follow.
        EXPECT_LE(peak, shares + (update == 0 ? 4 : 3) * layer) << "update " << update;
        EXPECT_GE(peak, shares + layer) << "nothing was gathered in update " << update;
    }
}

INSTANTIATE_TEST_SUITE_P(Types, Zero, testing::Values(DType::f64, DType::f32, DType::bf16),
                         [](const auto& info) { return to_string(info.param); });

}  // namespace
}  // namespace levin
