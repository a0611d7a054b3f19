// Layers run and recomputed in slices of tokens against the same pass in one go.
#include "model/slices.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "model/language_model.h"
#include "parallel/context_parallel/chunks.h"
#include "tests/device.h"
#include "tests/model/compare.h"
#include "tests/model/variants.h"

namespace levin {
namespace {

using test::relative_error;

using test::device;

Tensor ids(int64_t count, const char* name = "ids") { return test::ids(count, name, device()); }

// In float64: the order of sums is all that differs.
double wide_bound() { return device().is_cpu() ? 1e-12 : 1e-10; }

struct Pass {
    double loss;
    std::vector<Tensor> gradients;
};

Pass run(const ModelConfig& config, DType dtype, const ops::TokenLayout& layout, Recomputation mode,
         int64_t slice_tokens = 0) {
    LanguageModel model(config, dtype, device());
    model.initialize(3);
    model.set_recomputation(mode, slice_tokens);
    const int64_t tokens = layout.tokens();
    const auto loss =
        model.loss(ids(tokens), ids(tokens, "targets"), layout, {.scale = 1.0 / static_cast<double>(tokens)});
    backward(loss.loss);
    Pass pass{loss.loss.value().item(), {}};
    for (const Parameter& parameter : model.parameters())
        pass.gradients.push_back(parameter.variable.gradient());
    return pass;
}

void expect_same(const std::string& name, const Pass& a, const Pass& b, double bound) {
    EXPECT_NEAR(a.loss, b.loss, bound * std::abs(b.loss)) << name;
    ASSERT_EQ(a.gradients.size(), b.gradients.size());
    for (size_t i = 0; i < a.gradients.size(); ++i) {
        ASSERT_TRUE(a.gradients[i].defined()) << name << ", parameter " << i;
        EXPECT_LT(relative_error(a.gradients[i], b.gradients[i]), bound) << name << ", parameter " << i;
    }
}

bool has_softmax(const ModelConfig& config) {
    return std::find(config.mixer.begin(), config.mixer.end(), Mixer::softmax) != config.mixer.end();
}

ops::TokenLayout packed(const std::vector<int32_t>& borders) {
    return chunk_layout(1, borders.back(), borders, 0, 1, device());
}

TEST(Slices, KeepSequencesAndDocumentsTogetherWhereTheyFit) {
    const auto shape = [](const LayerSlices& slices) {
        std::vector<std::vector<int64_t>> rows;  // begin, batch, length, position, documents, continues
        for (size_t i = 0; i < slices.size(); ++i) {
            const ops::TokenLayout& layout = slices.layouts[i];
            EXPECT_EQ(slices.rows[i].rows, layout.tokens());
            rows.push_back({slices.rows[i].begin, layout.batch, layout.length, layout.first_position,
                            layout.sequences(), slices.rows[i].continues});
        }
        return rows;
    };
    using Rows = std::vector<std::vector<int64_t>>;
    EXPECT_EQ(shape(cut_into_slices({.batch = 5, .length = 10}, 0)), (Rows{{0, 5, 10, 0, 5, 0}}));
    EXPECT_EQ(shape(cut_into_slices({.batch = 5, .length = 10}, 29)),
              (Rows{{0, 2, 10, 0, 2, 0}, {20, 2, 10, 0, 2, 0}, {40, 1, 10, 0, 1, 0}}));
    // Pieces of about the same length, in whole tiles.
    EXPECT_EQ(shape(cut_into_slices({.batch = 2, .length = 1100, .first_position = 7}, 500)),
              (Rows{{0, 1, 384, 7, 1, 0},
                    {384, 1, 384, 391, 1, 1},
                    {768, 1, 332, 775, 1, 1},
                    {1100, 1, 384, 7, 1, 0},
                    {1484, 1, 384, 391, 1, 1},
                    {1868, 1, 332, 775, 1, 1}}));
    // A long document alone, the short ones around it in runs; positions count on.
    const LayerSlices documents = cut_into_slices(packed({0, 3, 5, 20, 22, 27, 31}), 7);
    EXPECT_EQ(shape(documents), (Rows{{0, 1, 5, 0, 2, 0},
                                      {5, 1, 7, 5, 1, 0},
                                      {12, 1, 7, 12, 1, 1},
                                      {19, 1, 1, 19, 1, 1},
                                      {20, 1, 7, 20, 2, 0},
                                      {27, 1, 4, 27, 1, 0}}));
    EXPECT_EQ(documents.layouts[4].cu_seqlens.to_host<int32_t>(), (std::vector<int32_t>{0, 2, 7}));
    EXPECT_FALSE(documents.hands_on(0));
    EXPECT_TRUE(documents.hands_on(1) && documents.hands_on(2) && documents.hands_on(3));
    EXPECT_FALSE(documents.hands_on(4));
}

TEST(Slices, HalvesAreWholeSequencesCutNearTheMiddle) {
    const auto rows = [](const ops::TokenLayout& layout) {
        std::vector<int64_t> counts;
        const LayerSlices halves = cut_into_halves(layout);
        for (size_t i = 0; i < halves.size(); ++i) {
            EXPECT_EQ(halves.rows[i].rows, halves.layouts[i].tokens());
            EXPECT_FALSE(halves.hands_on(i));
            counts.push_back(halves.rows[i].rows);
        }
        return counts;
    };
    using Rows = std::vector<int64_t>;
    EXPECT_EQ(rows({.batch = 1, .length = 10}), (Rows{10}));
    EXPECT_EQ(rows({.batch = 2, .length = 10}), (Rows{10, 10}));
    EXPECT_EQ(rows({.batch = 3, .length = 10}), (Rows{10, 20}));
    EXPECT_EQ(rows({.batch = 8, .length = 10}), (Rows{40, 40}));
    EXPECT_EQ(rows(packed({0, 31})), (Rows{31}));
    EXPECT_EQ(rows(packed({0, 3, 5, 20, 22, 27, 31})), (Rows{20, 11}));
    EXPECT_EQ(rows(packed({0, 3, 31})), (Rows{31})) << "a half that would hide nothing";
    EXPECT_EQ(rows(packed({0, 28, 31})), (Rows{31}));
    EXPECT_EQ(rows(chunk_layout(2, 10, {}, 0, 2, device())), (Rows{10})) << "context parallelism";
    const LayerSlices documents = cut_into_halves(packed({0, 3, 5, 20, 22, 31}));
    EXPECT_EQ(documents.layouts[0].cu_seqlens.to_host<int32_t>(), (std::vector<int32_t>{0, 3, 5, 20}));
    EXPECT_EQ(documents.layouts[1].cu_seqlens.to_host<int32_t>(), (std::vector<int32_t>{0, 2, 11}));
    EXPECT_EQ(documents.layouts[1].first_position, 20);
    EXPECT_EQ(cut_into_halves({.batch = 2, .length = 10}).layouts[1].first_position, 0);
}

// With context parallelism each slice is cut over all ranks.
TEST(Slices, CutOverRanksAreAllTokensOnce) {
    std::vector<int32_t> all(3 * 1000);
    for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<int32_t>(i);
    for (const std::vector<int32_t>& borders :
         {std::vector<int32_t>{}, {0, 5, 600, 1000, 1001, 2000, 2999, 3000}})
        for (const int ranks : {2, 3, 7})
            for (const int64_t slice : {2000, 700, 200, 51, 1}) {
                SCOPED_TRACE(fmt::format("{} ranks, {} tokens at a time", ranks, slice));
                std::vector<int> seen(all.size(), 0);
                std::vector<std::vector<int64_t>> starts;  // of the slices, as the first rank sees them
                for (int rank = 0; rank < ranks; ++rank) {
                    const ops::TokenLayout layout =
                        chunk_layout(3, 1000, borders, rank, ranks, device(), slice);
                    for (const int32_t token : chunk_of(all, layout)) ++seen[static_cast<size_t>(token)];
                    const LayerSlices slices = cut_into_slices(layout, slice);
                    std::vector<std::vector<int64_t>> own;
                    for (size_t i = 0; i < slices.size(); ++i) {
                        const SequenceChunks& chunks = *slices.layouts[i].chunks;
                        EXPECT_GE(slices.rows[i].rows, 1);
                        EXPECT_LE(slices.rows[i].rows, slice + 1);
                        EXPECT_EQ(slices.layouts[i].first_position, chunks.starts[static_cast<size_t>(rank)]);
                        own.push_back(chunks.starts);
                        // What one slice leaves, the next one takes.
                        EXPECT_EQ(chunks.goes_on(), i + 1 < slices.size() && slices.rows[i + 1].continues);
                    }
                    EXPECT_FALSE(slices.rows.front().continues);
                    EXPECT_FALSE(slices.layouts.back().chunks->goes_on());
                    if (rank == 0) starts = own;
                    EXPECT_EQ(own, starts);
                }
                EXPECT_TRUE(std::all_of(seen.begin(), seen.end(), [](int n) { return n == 1; }));
            }
}

TEST(Slices, GiveTheLossAndGradientsOfOnePass) {
    for (const auto& [name, config] : test::variants(2)) {
        const ops::TokenLayout layout{.batch = 2, .length = 83};
        const Pass whole = run(config, DType::f64, layout, Recomputation::none);
        // 166: as full recomputation. 83: a sequence at a time. 20: a ragged last slice.
        for (const int64_t tokens : {166, 83, 20}) {
            if (tokens < 83 && has_softmax(config)) continue;
            expect_same(fmt::format("{} in slices of {}", name, tokens),
                        run(config, DType::f64, layout, Recomputation::full, tokens), whole, wide_bound());
        }
        if (has_softmax(config)) continue;
        const ops::TokenLayout single{.batch = 2, .length = 300};
        expect_same(name + " in f32", run(config, DType::f32, single, Recomputation::full, 128),
                    run(config, DType::f32, single, Recomputation::none), 2e-5);
    }
}

TEST(Slices, OfPackedDocumentsAreExactToo) {
    for (const auto& [name, config] : test::variants(2)) {
        if (config.position == Position::absolute) continue;
        const ops::TokenLayout layout = packed({0, 5, 6, 70, 90, 91, 150});
        const Pass whole = run(config, DType::f64, layout, Recomputation::none);
        for (const int64_t tokens : {75, 33, 6}) {
            if (tokens < 64 && has_softmax(config)) continue;
            expect_same(fmt::format("{} packed in slices of {}", name, tokens),
                        run(config, DType::f64, layout, Recomputation::full, tokens), whole, wide_bound());
        }
    }
}

TEST(Slices, RunWithoutGradientsAsWell) {
    const NoGradient off;
    LanguageModel model(test::small(2), DType::f64, device());
    model.initialize(3);
    const ops::TokenLayout layout{.batch = 2, .length = 83};
    const Tensor input = ids(166), whole = model.hidden(input, layout).value();
    model.set_recomputation(Recomputation::full, 20);
    EXPECT_LT(relative_error(model.hidden(input, layout).value(), whole), wide_bound());
}

// bf16, heads as wide as the tensor-core kernels take them, slices of whole tiles and ragged ones.
TEST(Slices, OfBf16AreAsExactAsOnePass) {
    ModelConfig config = test::small(2);
    config.hidden_size = 128;
    config.init_std = 0.06;
    for (const ops::TokenLayout& layout :
         {ops::TokenLayout{.batch = 2, .length = 700}, packed({0, 30, 650, 651, 900, 1400})}) {
        const Pass truth = run(config, DType::f32, layout, Recomputation::none);
        const Pass whole = run(config, DType::bf16, layout, Recomputation::none);
        for (const int64_t tokens : {256, 300, 190}) {
            const Pass sliced = run(config, DType::bf16, layout, Recomputation::full, tokens);
            EXPECT_NEAR(sliced.loss, truth.loss, 2e-3 * truth.loss);
            for (size_t i = 0; i < truth.gradients.size(); ++i)
                EXPECT_LT(relative_error(sliced.gradients[i], truth.gradients[i]),
                          1.3 * relative_error(whole.gradients[i], truth.gradients[i]) + 1e-3)
                    << "slices of " << tokens << ", parameter " << i;
        }
    }
}

// A layer keeps its input alone, backward writes the gradient of the residual stream over itself, and all
// else is of the length of a slice.
TEST(Slices, PeakMemoryIsTheInputsOfTheLayersAndLittleElse) {
    ModelConfig config = test::small(4);
    config.hidden_size = 32;
    config.glu_dim = 64;
    config.num_layers = 6;
    const int64_t tokens = 8192, slice = 256;
    const auto peak = [&](Recomputation mode, int64_t slice_tokens) {
        LanguageModel model(config, DType::f32, device());
        model.initialize(3);
        model.set_recomputation(mode, slice_tokens);
        const Tensor input = ids(tokens), targets = ids(tokens, "targets");
        const ops::TokenLayout layout{.batch = 1, .length = tokens};
        const ops::CrossEntropyOptions options{.scale = 1.0 / static_cast<double>(tokens),
                                               .chunk_tokens = slice};
        backward(
            model.loss(input, targets, layout, options).loss);  // the parameters' gradients exist from now on
        const size_t before = memory_statistics(device()).live_total;
        reset_peak_memory(device());
        backward(model.loss(input, targets, layout, options).loss);
        return static_cast<double>(memory_statistics(device()).peak_total - before);
    };
    const double stream = static_cast<double>(tokens * config.hidden_size) * 4;  // the residual stream once
    // The end of forward: the layers' inputs, the last one's output, and hidden with its gradient. Numbers a
    // token (losses, 1 / rms) are 4 of 4 x 32 bytes each; a layer in backward has some 20 widths of a slice.
    const double in_slices = peak(Recomputation::full, slice), full = peak(Recomputation::full, 0),
                 none = peak(Recomputation::none, 0);
    EXPECT_GE(in_slices / stream, 6 + 3);
    EXPECT_LE(in_slices / stream, 6 + 3 + 0.4);
    EXPECT_GT(full / stream, 6 + 15);
    EXPECT_GT(none / full, 3);
}

TEST(Slices, WhatCannotBeCutIsRefused) {
    const auto refusal = [](const ModelConfig& config, const ops::TokenLayout& layout) {
        LanguageModel model(config, DType::f32, device());
        model.initialize(1);
        model.set_recomputation(Recomputation::full, 10);
        try {
            model.hidden(ids(layout.tokens()), layout);
        } catch (const Error& error) {
            EXPECT_EQ(error.fault(), Fault::input);
            return std::string(error.what());
        }
        return std::string("not refused");
    };
    ModelConfig hybrid = test::small(2);
    hybrid.mixer = {Mixer::lightning, Mixer::softmax};
    EXPECT_NE(refusal(hybrid, {.length = 11}).find("layer 1 has softmax attention"), std::string::npos);
    EXPECT_EQ(refusal(hybrid, {.batch = 3, .length = 10}), "not refused");
}

}  // namespace
}  // namespace levin
