// One line per op: its gradient against finite differences.
#include "core/ops.h"
#include "tests/core/gradient_check.h"

namespace levin {
namespace {

using namespace ops;
using test::check_gradients;
using test::random_tensor;
using Inputs = std::vector<Variable>;
using Outputs = std::vector<Variable>;

Tensor x(const Shape& shape, const char* name = "x") { return random_tensor(shape, name); }
const Shape kRows{5, 6};

TEST(Gradient, Add) {
    check_gradients([](const Inputs& v) { return Outputs{add(v[0], v[1])}; }, {x(kRows), x(kRows, "y")});
}
TEST(Gradient, AddToItself) {
    check_gradients([](const Inputs& v) { return Outputs{add(v[0], v[0])}; }, {x(kRows)});
}
TEST(Gradient, Scale) {
    check_gradients([](const Inputs& v) { return Outputs{scale(v[0], -1.5)}; }, {x(kRows)});
}
TEST(Gradient, Multiply) {
    check_gradients([](const Inputs& v) { return Outputs{multiply(v[0], v[1])}; }, {x(kRows), x(kRows, "y")});
}
TEST(Gradient, Linear) {
    check_gradients([](const Inputs& v) { return Outputs{linear(v[0], v[1])}; }, {x(kRows), x({4, 6}, "w")});
}
TEST(Gradient, LinearWithBias) {
    check_gradients([](const Inputs& v) { return Outputs{linear(v[0], v[1], v[2])}; },
                    {x(kRows), x({4, 6}, "w"), x({4}, "b")});
}
TEST(Gradient, Split) {
    check_gradients([](const Inputs& v) { return split(v[0], {1, 3, 2}); }, {x(kRows)});
}
TEST(Gradient, SplitWithOneSliceUnusedAndOneUsedTwice) {
    check_gradients(
        [](const Inputs& v) {
            const auto parts = split(scale(v[0], 2), {2, 2, 2});
            return Outputs{multiply(parts[0], parts[0]), glu(parts[0], parts[0], Activation::silu),
                           scale(parts[2], 3)};
        },
        {x(kRows)});
}
TEST(Gradient, SplitRows) {
    check_gradients([](const Inputs& v) { return split_rows(v[0], {1, kRows[0] - 1}); }, {x(kRows)});
}
TEST(Gradient, SplitRowsWithOnePartUnusedAndOneUsedTwice) {
    check_gradients(
        [](const Inputs& v) {
            const auto parts = split_rows(scale(v[0], 2), {1, kRows[0] - 1});
            return Outputs{multiply(parts[1], parts[1]), scale(parts[1], 3)};
        },
        {x(kRows)});
}
TEST(Gradient, JoinRows) {
    check_gradients(
        [](const Inputs& v) {
            return Outputs{join_rows({v[0], v[1], scale(v[0], 2)})};
        },
        {x(kRows), x({2, kRows[1]}, "y")});
}
TEST(Gradient, Activations) {
    for (const Activation a : {Activation::silu, Activation::relu, Activation::leaky_relu, Activation::elu,
                               Activation::one_plus_elu, Activation::two_plus_elu, Activation::gelu,
                               Activation::sigmoid, Activation::sine})
        check_gradients([a](const Inputs& v) { return Outputs{activation(v[0], a)}; }, {x(kRows)});
}
TEST(Gradient, ExpTreatsItsMaximumAsAConstant) {
    // exp(x - max): finite differences would move the maximum too, so compare with dy * y.
    Variable v(x(kRows), true);
    const Variable y = activation(v, Activation::exp, 3);
    const Tensor seed = random_tensor(kRows, "seed");
    backward(y, seed);
    const auto g = v.gradient().to_vector(), yv = y.value().to_vector(), s = seed.to_vector(),
               xv = v.value().to_vector();
    for (size_t i = 0; i < g.size(); ++i) {
        const size_t group = i / 3 * 3;
        const double maximum = std::max({xv[group], xv[group + 1], xv[group + 2]});
        EXPECT_NEAR(yv[i], std::exp(xv[i] - maximum), 1e-14);
        EXPECT_NEAR(g[i], s[i] * yv[i], 1e-14);
    }
}
TEST(Gradient, Glu) {
    for (const Activation a : {Activation::none, Activation::silu})
        check_gradients([a](const Inputs& v) { return Outputs{glu(v[0], v[1], a)}; },
                        {x(kRows), x(kRows, "b")});
}
TEST(Gradient, SrmsNorm) {
    check_gradients([](const Inputs& v) { return Outputs{srms_norm(v[0], 1e-6)}; }, {x(kRows)});
}
TEST(Gradient, AddSrmsNorm) {
    check_gradients(
        [](const Inputs& v) {
            const auto [h, y] = add_srms_norm(v[0], v[1], 1e-6);
            return Outputs{h, y};
        },
        {x(kRows), x(kRows, "branch")});
}
TEST(Gradient, AddSrmsNormWithOneResultUnused) {
    check_gradients([](const Inputs& v) { return Outputs{add_srms_norm(v[0], v[1], 1e-6).first}; },
                    {x(kRows), x(kRows, "branch")});
    check_gradients([](const Inputs& v) { return Outputs{add_srms_norm(v[0], v[1], 1e-6).second}; },
                    {x(kRows), x(kRows, "branch")});
}
TEST(Gradient, GatedSrmsNorm) {
    for (const Activation gate : {Activation::none, Activation::sigmoid})
        check_gradients([gate](const Inputs& v) { return Outputs{gated_srms_norm(v[0], v[1], gate, 1e-6)}; },
                        {x(kRows), x(kRows, "u")});
}
TEST(Gradient, RmsNorm) {
    check_gradients([](const Inputs& v) { return Outputs{rms_norm(v[0], v[1], 1e-6)}; },
                    {x(kRows), x({6}, "w")});
}
TEST(Gradient, LayerNorm) {
    check_gradients([](const Inputs& v) { return Outputs{layer_norm(v[0], v[1], v[2], 1e-5)}; },
                    {x(kRows), x({6}, "w"), x({6}, "b")});
}
TEST(Gradient, Lrpe) {
    const TokenLayout layout{.batch = 1, .length = 5, .first_position = 3};
    check_gradients([&](const Inputs& v) { return Outputs{lrpe(v[0], v[1], layout)}; },
                    {x({5, 6}), x({2, 3}, "theta")});
}
TEST(Gradient, Rope) {
    const TokenLayout layout{.batch = 1, .length = 5, .first_position = 3};
    check_gradients([&](const Inputs& v) { return Outputs{rope(v[0], 2, 10000, layout)}; }, {x({5, 8})});
}

LightningOptions lightning_options(int64_t heads) {
    std::vector<float> slopes;
    for (int64_t j = 0; j < heads; ++j) slopes.push_back(0.3f * static_cast<float>(j));
    return {.heads = heads, .slopes = Tensor::from({heads}, slopes)};
}

TEST(Gradient, LightningAttention) {
    const TokenLayout layout{.batch = 2, .length = 7};
    check_gradients(
        [&](const Inputs& v) {
            return Outputs{lightning_attention(v[0], v[1], v[2], lightning_options(2), layout).output};
        },
        {x({14, 6}, "q"), x({14, 6}, "k"), x({14, 8}, "v")});
}
TEST(Gradient, LightningAttentionWithEverything) {
    const TokenLayout layout{.batch = 1,
                             .length = 9,
                             .first_position = 5,
                             .cu_seqlens = Tensor::from({3}, std::vector<int32_t>{0, 4, 9})};
    check_gradients(
        [&](const Inputs& v) {
            LightningOptions options = lightning_options(2);
            options.qk_activation = Activation::silu;
            options.v_activation = Activation::silu;
            options.theta = v[3];
            options.initial_state = v[4];
            options.want_final_state = true;
            const auto result = lightning_attention(v[0], v[1], v[2], options, layout);
            return Outputs{result.output, result.final_state};
        },
        {x({9, 4}, "q"), x({9, 4}, "k"), x({9, 6}, "v"), x({2, 2}, "theta"), x({2, 2, 4, 3}, "state")});
}
TEST(Gradient, SoftmaxAttention) {
    const TokenLayout layout{.batch = 2, .length = 6};
    check_gradients(
        [&](const Inputs& v) { return Outputs{softmax_attention(v[0], v[1], v[2], 4, 2, layout)}; },
        {x({12, 8}, "q"), x({12, 4}, "k"), x({12, 4}, "v")});
}
TEST(Gradient, Embedding) {
    const Tensor ids = Tensor::from({5}, std::vector<int32_t>{2, 0, 2, 3, 1});
    check_gradients([&](const Inputs& v) { return Outputs{embedding(v[0], ids, 2.5)}; },
                    {x({4, 3}, "table")});
}
TEST(Gradient, EmbeddingPaddingRowGetsNone) {
    const Tensor ids = Tensor::from({3}, std::vector<int32_t>{1, 0, 1});
    Variable table(x({2, 3}, "table"), true);
    backward(embedding(table, ids, 1, 1), Tensor::full({3, 3}, 1, DType::f64));
    EXPECT_EQ(table.gradient().to_vector(), (std::vector<double>{1, 1, 1, 0, 0, 0}));
}

// The loss forms its gradients in its forward pass and must be the root: check it by itself.
TEST(Gradient, LinearCrossEntropy) {
    const Tensor targets = Tensor::from({5}, std::vector<int32_t>{2, -1, 0, 6, 3});
    const CrossEntropyOptions options{.scale = 0.3, .z_loss = 0.05, .chunk_tokens = 2};
    const Tensor h = x({5, 4}, "h"), w = x({7, 4}, "w");
    const auto loss_of = [&](const Tensor& hidden, const Tensor& weight) {
        NoGradient off;
        return linear_cross_entropy(Variable(hidden), Variable(weight), targets, options).loss.value().item();
    };
    Variable hv(h.clone(), true), wv(w.clone(), true);
    backward(linear_cross_entropy(hv, wv, targets, options).loss);
    for (const bool of_weight : {false, true}) {
        const auto gradient = (of_weight ? wv : hv).gradient().to_vector();
        for (size_t i = 0; i < gradient.size(); ++i) {
            Tensor hm = h.clone(), wm = w.clone();
            double* element = (of_weight ? wm : hm).data<double>() + i;
            *element += 1e-5;
            const double above = loss_of(hm, wm);
            *element -= 2e-5;
            EXPECT_NEAR(gradient[i], (above - loss_of(hm, wm)) / 2e-5, 1e-8) << of_weight << " " << i;
        }
    }
}

}  // namespace
}  // namespace levin
