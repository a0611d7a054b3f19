// The decoder computes what the model does token by token, over every variant it supports.
#include "model/decoder.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/device.h"
#include "tests/model/variants.h"

namespace levin {
namespace {

using test::device;

Tensor tokens_at(int64_t batch, int64_t step) {
    std::vector<int32_t> ids;
    for (int64_t b = 0; b < batch; ++b) ids.push_back(static_cast<int32_t>((step * 7 + b * 11 + 3) % 37));
    return Tensor::from({batch}, ids, device());
}

double distance(const Tensor& a, const Tensor& b) {
    const auto x = a.to_vector(), y = b.to_vector();
    double difference = 0, norm = 0;
    for (size_t i = 0; i < x.size(); ++i) {
        difference += (x[i] - y[i]) * (x[i] - y[i]);
        norm += y[i] * y[i];
    }
    return std::sqrt(difference / norm);
}

// After a prefill of 9 tokens, five single ones: the same logits by both ways.
void check(const std::string& name, const ModelConfig& config, DType dtype, int64_t batch, double tolerance) {
    SCOPED_TRACE(name + " " + to_string(dtype) + " batch " + std::to_string(batch));
    NoGradient off;
    LanguageModel model(config, dtype, device());
    model.initialize(3);
    ASSERT_TRUE(Decoder::supports(model));
    DecodeState state = model.new_state();
    std::vector<int32_t> prompt;
    for (int64_t b = 0; b < batch; ++b)
        for (int t = 0; t < 9; ++t) prompt.push_back(static_cast<int32_t>((b * 5 + t * 3) % 37));
    model.hidden(Tensor::from({batch * 9}, prompt, device()), {.batch = batch, .length = 9}, &state);
    Decoder decoder(model, batch);
    decoder.set_state(state);
    for (int64_t step = 0; step < 5; ++step) {
        const Tensor ids = tokens_at(batch, step);
        decoder.set_tokens(ids.to_host<int32_t>());
        decoder.step();
        const Tensor expected = model.logits(model.hidden(ids, {.batch = batch, .length = 1}, &state));
        EXPECT_LT(distance(decoder.logits(), expected), tolerance);
        EXPECT_EQ(decoder.position(), state.position);
        const auto logits = decoder.logits().to_vector();
        const auto next = decoder.tokens().to_host<int32_t>();
        for (int64_t b = 0; b < batch; ++b) {
            const auto row = logits.begin() + b * config.vocab_size;
            EXPECT_EQ(next[static_cast<size_t>(b)], std::max_element(row, row + config.vocab_size) - row);
        }
    }
}

TEST(Decoder, ComputesWhatTheModelDoes) {
    int supported = 0;
    for (const auto& [name, config] : test::variants(4)) {
        LanguageModel model(config, DType::f32, {});
        if (!Decoder::supports(model)) continue;
        ++supported;
        check(name, config, DType::f64, 2, 1e-12);
        check(name, config, DType::f32, 3, 1e-5);
        check(name, config, DType::bf16, 1, 2e-2);
    }
    EXPECT_GE(supported, 10);
}

// Widths at which a GPU takes its fused kernels, and batches with and without them.
TEST(Decoder, ComputesWhatTheModelDoesAtRealWidths) {
    for (const Family family : {Family::tnl, Family::tnl3}) {
        ModelConfig config = test::small(2, family);
        config.hidden_size = 256;
        config.glu_dim = 704;
        config.gate_dim = 16;
        config.init_std = 0.05;
        for (const int64_t batch : {1, 2, 5, 64}) check("wide", config, DType::bf16, batch, 2e-2);
    }
}

TEST(Decoder, GoesOnByItself) {
    NoGradient off;
    LanguageModel model(test::small(4), DType::f32, device());
    model.initialize(3);
    Decoder decoder(model, 2), again(model, 2);
    std::vector<std::vector<int32_t>> first, second;
    for (Decoder* one : {&decoder, &again}) {
        one->set_position(1000000);
        one->set_tokens(std::vector<int32_t>{5, 6});
        for (int i = 0; i < 12; ++i) {
            one->step();
            (one == &decoder ? first : second).push_back(one->tokens().to_host<int32_t>());
        }
    }
    EXPECT_EQ(first, second);
    EXPECT_EQ(decoder.position(), 1000012);
    EXPECT_GT(decoder.bytes_per_step(), 0u);
}

TEST(Decoder, RefusesWhatItCannotDo) {
    for (const char* name : {"transformer", "hybrid", "norm layernorm", "bias", "position absolute"})
        for (const auto& [variant, config] : test::variants(4))
            if (variant == name) {
                LanguageModel model(config, DType::f32, {});
                EXPECT_FALSE(Decoder::supports(model)) << name;
                EXPECT_THROW(Decoder(model, 1), Error) << name;
            }
    LanguageModel model(test::small(4), DType::f32, device());
    model.initialize(1);
    Decoder decoder(model, 2);
    EXPECT_THROW(decoder.set_tokens(std::vector<int32_t>{1}), Error);
    EXPECT_THROW(decoder.set_tokens(std::vector<int32_t>{1, 37}), Error);
}

}  // namespace
}  // namespace levin
