// The optimizer on a model: bf16 weights follow f32 masters, and accumulation equals one larger batch.
#include "trainer/optimizer.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>

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
