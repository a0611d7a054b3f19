// The optimizer on a model: bf16 weights follow f32 masters, and accumulation equals one larger batch.
#include "trainer/optimizer.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <numeric>

namespace levin {
namespace {

ModelConfig tiny() {
    ModelConfig config;
    config.vocab_size = 50;
    config.hidden_size = 32;
    config.num_layers = 2;
    config.num_heads = 2;
    config.glu_dim = 64;
    return config;
}

Tensor ids(int64_t count, int32_t factor) {
    std::vector<int32_t> values(static_cast<size_t>(count));
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<int32_t>(i) * factor % 50;
    return Tensor::from({count}, values);
}

TEST(Optimizer, Bf16WeightsAreRoundedMasters) {
    LanguageModel model(tiny(), DType::bf16, {});
    model.initialize(1);
    Optimizer optimizer(model, {});
    for (int step = 0; step < 3; ++step) {
        backward(model.loss(ids(64, 3), ids(64, 7), {.batch = 1, .length = 64}, {.scale = 1.0 / 64}).loss);
        optimizer.step(1e-4);
        EXPECT_TRUE(std::isfinite(optimizer.gradient_norm().item()));
    }
    bool smaller_than_bf16 = false;
    for (size_t i = 0; i < model.parameters().size(); ++i) {
        const Tensor master = optimizer.master(i), value = model.parameters()[i].variable.value();
        EXPECT_EQ(master.dtype(), DType::f32);
        const auto weights = value.to_vector(), masters = master.to_vector();
        if (value.dtype() == DType::f32) {  // kept in full: its own master
            EXPECT_EQ(weights, masters);
            continue;
        }
        for (size_t j = 0; j < weights.size(); ++j) {  // nearest, ties away from zero
            const auto bits = std::bit_cast<uint32_t>(static_cast<float>(masters[j])) + 0x8000u;
            EXPECT_EQ(weights[j], std::bit_cast<float>(bits & 0xffff0000u))
                << model.parameters()[i].spec.name;
        }
        smaller_than_bf16 = smaller_than_bf16 || value.to_vector() != master.to_vector();
    }
    EXPECT_TRUE(smaller_than_bf16);
}

// Split or beside the weights, the masters are the same numbers, and so is what the model computes.
TEST(Optimizer, SplitMastersAreExact) {
    std::vector<std::vector<double>> masters[2];
    double losses[2] = {};
    for (const bool split : {false, true}) {
        LanguageModel model(tiny(), DType::bf16, {});
        model.initialize(1);
        Optimizer optimizer(model, {.split_masters = split});
        for (int step = 0; step < 5; ++step) {
            const auto loss =
                model.loss(ids(64, 3 + step), ids(64, 7), {.batch = 1, .length = 64}, {.scale = 1.0 / 64})
                    .loss;
            losses[split] = loss.value().item();
            backward(loss);
            optimizer.step(1e-3);
        }
        for (size_t i = 0; i < model.parameters().size(); ++i)
            masters[split].push_back(optimizer.master(i).to_vector());
        // Out and in again, as by a checkpoint.
        for (OptimizerRange& range : optimizer.ranges()) {
            const Tensor kept = optimizer.master_of(range).clone();
            const auto before = range.value.to_vector();
            range.value.fill(0);
            optimizer.set_master(range, kept);
            EXPECT_EQ(optimizer.master_of(range).to_vector(), kept.to_vector());
            if (split) {
                EXPECT_EQ(range.value.to_vector(), before);
            }
        }
    }
    EXPECT_EQ(losses[0], losses[1]);
    EXPECT_EQ(masters[0], masters[1]);
}

// Rounding takes the number of an element in the whole parameter, whatever part and range of it a rank has.
TEST(Optimizer, ElementsKnowTheirNumbers) {
    const auto spec = [](Shape shape, Sharding sharding, std::vector<int64_t> segments = {}) {
        ParameterSpec result;
        result.name = "weight";
        result.shape = std::move(shape);
        result.sharding = sharding;
        result.segments = std::move(segments);
        return result;
    };
    for (const ParameterSpec& one :
         {spec({24, 5}, Sharding::rows, {8, 4, 12}), spec({37, 3}, Sharding::rows),
          spec({6, 8}, Sharding::columns), spec({40}, Sharding::rows, {40}), spec({9}, Sharding::replicated)})
        for (const int64_t tp : {1, 2, 4})
            for (int64_t rank = 0; rank < tp; ++rank) {
                std::vector<double> numbers(static_cast<size_t>(element_count(one.shape)));
                std::iota(numbers.begin(), numbers.end(), 1);  // padding is 0
                const Shard shard = shard_of(one, tp, rank);
                const auto part =
                    take_shard(Tensor::from(one.shape, numbers), shard, DType::f64, {}).to_vector();
                const auto size = static_cast<int64_t>(part.size());
                for (const auto& [start, count] :
                     {std::pair{int64_t{0}, size}, {size / 3, size - size / 3}, {size / 3, size / 2}}) {
                    std::vector<double> found(static_cast<size_t>(count));
                    for (const Stretch& s : stretches_of(one, shard, start, count))
                        for (int64_t i = 0; i < s.end - s.begin; ++i)
                            found[static_cast<size_t>(s.begin + i)] +=
                                static_cast<double>(s.first + i + (s.column + i) / s.columns * s.gap + 1);
                    EXPECT_EQ(found, std::vector<double>(part.begin() + start, part.begin() + start + count))
                        << to_string(one.shape) << " rank " << rank << " of " << tp << " from " << start;
                }
            }
}

// A model that learns a sequence with its moments in bf16 ends where it ends with them in f32.
TEST(Optimizer, Bf16MomentsLearnAsWell) {
    const auto last_losses = [](DType dtype, bool narrow) {
        LanguageModel model(tiny(), dtype, {});
        model.initialize(1);
        Optimizer optimizer(model, {.bf16_moments = narrow});
        for (const OptimizerRange& range : optimizer.ranges())
            EXPECT_TRUE(range.m.dtype() == (narrow ? DType::bf16 : DType::f32) &&
                        range.v.dtype() == range.m.dtype());
        std::vector<double> losses;
        for (int step = 0; step < 200; ++step) {
            const auto loss = model
                                  .loss(ids(32, 3 + step % 7), ids(32, 5 * (3 + step % 7)),
                                        {.batch = 1, .length = 32}, {.scale = 1.0 / 32})
                                  .loss;
            losses.push_back(loss.value().item());
            backward(loss);
            optimizer.step(3e-4);
        }
        EXPECT_LT(losses.back(), 0.5 * losses.front());
        return std::vector<double>(losses.end() - 7, losses.end());
    };
    for (const DType dtype : {DType::f32, DType::bf16}) {
        const std::vector<double> wide = last_losses(dtype, false), narrow = last_losses(dtype, true);
        EXPECT_NE(narrow, wide);
        for (size_t i = 0; i < wide.size(); ++i)
            EXPECT_NEAR(narrow[i] / wide[i], 1, 0.01) << to_string(dtype);
    }
}

TEST(Optimizer, AccumulatedMicroBatchesEqualOneBatch) {
    std::vector<std::vector<double>> weights[2];
    for (int split = 0; split < 2; ++split) {
        LanguageModel model(tiny(), DType::f64, {});
        model.initialize(1);
        Optimizer optimizer(model, {.clip_grad_norm = 0.1});
        for (int step = 0; step < 4; ++step) {
            const Tensor input = ids(96, 3 + step), targets = ids(96, 7);
            const int64_t parts = split ? 3 : 1, rows = 96 / parts;
            for (int64_t part = 0; part < parts; ++part)
                backward(model
                             .loss(input.narrow(0, part * rows, rows), targets.narrow(0, part * rows, rows),
                                   {.batch = rows / 32, .length = 32}, {.scale = 1.0 / 96})
                             .loss);
            optimizer.step(1e-3);
        }
        for (size_t i = 0; i < model.parameters().size(); ++i)
            weights[split].push_back(optimizer.master(i).to_vector());
    }
    for (size_t i = 0; i < weights[0].size(); ++i)
        for (size_t j = 0; j < weights[0][i].size(); ++j)
            ASSERT_NEAR(weights[0][i][j], weights[1][i][j], 1e-9);
}

}  // namespace
}  // namespace levin
