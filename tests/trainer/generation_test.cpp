#include "trainer/generation.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

namespace levin {
namespace {

const std::vector<double> kLogits{std::log(0.1), std::log(0.4), std::log(0.2), std::log(0.3)};

TEST(Sampling, FollowsTheProbabilities) {
    int counts[4] = {};
    for (int i = 0; i < 10000; ++i) ++counts[sample_token(kLogits, {}, (i + 0.5) / 10000)];
    EXPECT_EQ(counts[0], 1000);
    EXPECT_EQ(counts[1], 4000);
    EXPECT_EQ(counts[2], 2000);
    EXPECT_EQ(counts[3], 3000);
}

std::set<int32_t> reached(const SamplingOptions& options) {
    std::set<int32_t> tokens;
    for (int i = 0; i < 1000; ++i) tokens.insert(sample_token(kLogits, options, (i + 0.5) / 1000));
    return tokens;
}

TEST(Sampling, CutsTheTail) {
    EXPECT_EQ(reached({.temperature = 0}), (std::set<int32_t>{1}));
    EXPECT_EQ(reached({.top_k = 2}), (std::set<int32_t>{1, 3}));
    EXPECT_EQ(reached({.top_p = 0.65}), (std::set<int32_t>{1, 3}));
    EXPECT_EQ(reached({.top_p = 0.71}), (std::set<int32_t>{1, 2, 3}));
    EXPECT_EQ(reached({.top_p = 0.0}), (std::set<int32_t>{1}));
    EXPECT_EQ(reached({.temperature = 0.01}), (std::set<int32_t>{1}));
    EXPECT_EQ(reached({}).size(), 4u);
}

TEST(Sampling, TiesGoToTheLowerId) {
    EXPECT_EQ(sample_token(std::vector<double>{1, 2, 2}, {.temperature = 0}, 0), 1);
    EXPECT_EQ(sample_token(std::vector<double>{2, 2, 2}, {.top_k = 1}, 0.99), 0);
}

ModelConfig tiny() {
    ModelConfig config;
    config.vocab_size = 50;
    config.hidden_size = 32;
    config.num_layers = 2;
    config.num_heads = 2;
    config.glu_dim = 64;
    return config;
}

TEST(Generation, IsTheSameForTheSameSeedAndAnyPrefillChunk) {
    LanguageModel model(tiny(), DType::f64, {});
    model.initialize(1);
    std::vector<int32_t> prompt(200);
    for (size_t i = 0; i < prompt.size(); ++i) prompt[i] = static_cast<int32_t>(i * 7 % 50);
    const auto run = [&](uint64_t seed, int64_t chunk) {
        return generate(model, prompt, {.seed = seed, .max_tokens = 40, .prefill_chunk = chunk});
    };
    const auto first = run(1, 2048);
    EXPECT_EQ(first.size(), 40u);
    EXPECT_EQ(run(1, 2048), first);
    EXPECT_EQ(run(1, 1), first);
    EXPECT_EQ(run(1, 63), first);
    EXPECT_NE(run(2, 2048), first);
}

TEST(Generation, StopsWhereItIsTold) {
    LanguageModel model(tiny(), DType::f64, {});
    model.initialize(1);
    const std::vector<int32_t> prompt{1, 2, 3};
    const auto all = generate(model, prompt, {.max_tokens = 30});
    const auto stopped = generate(model, prompt, {.max_tokens = 30, .stop = {all[10]}});
    EXPECT_LE(stopped.size(), 10u);
    int seen = 0;
    generate(model, prompt, {.max_tokens = 30}, [&](int32_t) { return ++seen < 5; });
    EXPECT_EQ(seen, 5);
    EXPECT_THROW(generate(model, {}, {}), Error);
    EXPECT_THROW(generate(model, std::vector<int32_t>{50}, {}), Error);
}

// Memory per token does not grow: the state of a lightning layer is what it was.
TEST(Generation, KeepsConstantMemoryAtAnyPosition) {
    LanguageModel model(tiny(), DType::f32, {});
    model.initialize(1);
    DecodeState state = model.new_state();
    const auto grow = [&](int64_t to) {
        std::vector<int32_t> piece;
        while (state.position < to) {
            piece.assign(static_cast<size_t>(std::min<int64_t>(1000, to - state.position)), 7);
            feed(model, state, piece);
        }
        reset_peak_memory({});
        const size_t before = memory_statistics({}).live_total;
        feed(model, state, std::vector<int32_t>{1});
        return memory_statistics({}).peak_total - before;
    };
    const size_t at_100 = grow(100), live_100 = memory_statistics({}).live_total;
    const size_t at_100000 = grow(100000);
    EXPECT_EQ(at_100000, at_100);
    EXPECT_EQ(memory_statistics({}).live_total, live_100);
}

}  // namespace
}  // namespace levin
