// Every fused op equals its composition of simple ops, values and gradients, over a grid of shapes.
#include "core/ops.h"
#include "tests/core/gradient_check.h"

namespace levin {
namespace {

using namespace ops;
using test::check_equal;
using test::random_tensor;
using Inputs = std::vector<Variable>;
using Outputs = std::vector<Variable>;

Tensor x(const Shape& shape, const char* name) { return random_tensor(shape, name); }

const std::vector<Shape> kShapes{{1, 8}, {3, 33}, {70, 128}};

TEST(Fused, AddSrmsNorm) {
    for (const Shape& shape : kShapes)
        check_equal(
            [](const Inputs& v) {
                const auto [h, y] = add_srms_norm(v[0], v[1], 1e-6);
                return Outputs{h, y};
            },
            [](const Inputs& v) {
                const Variable h = add(v[0], v[1]);
                return Outputs{h, srms_norm(h, 1e-6)};
            },
            {x(shape, "x"), x(shape, "branch")});
}

TEST(Fused, GatedSrmsNorm) {
    for (const Shape& shape : kShapes)
        for (const Activation gate : {Activation::none, Activation::sigmoid})
            check_equal([gate](const Inputs& v) { return Outputs{gated_srms_norm(v[0], v[1], gate, 1e-6)}; },
                        [gate](const Inputs& v) {
                            return Outputs{multiply(activation(v[1], gate), srms_norm(v[0], 1e-6))};
                        },
                        {x(shape, "o"), x(shape, "u")});
}

TEST(Fused, Glu) {
    for (const Shape& shape : kShapes)
        for (const Activation a : {Activation::none, Activation::silu, Activation::gelu})
            check_equal([a](const Inputs& v) { return Outputs{glu(v[0], v[1], a)}; },
                        [a](const Inputs& v) { return Outputs{multiply(activation(v[0], a), v[1])}; },
                        {x(shape, "a"), x(shape, "b")});
}

// On slices of one projection, as the model calls them: strided inputs, gradients into one buffer.
TEST(Fused, GluOnSlices) {
    check_equal(
        [](const Inputs& v) {
            const auto parts = split(linear(v[0], v[1]), {6, 6});
            return Outputs{glu(parts[0], parts[1], Activation::silu)};
        },
        [](const Inputs& v) {
            const Variable y = linear(v[0], v[1]);
            // Slices formed by multiplication with constant matrices.
            Tensor first = Tensor::zeros({6, 12}, DType::f64), second = first.clone();
            for (int64_t i = 0; i < 6; ++i) {
                first.data<double>()[i * 12 + i] = 1;
                second.data<double>()[i * 12 + 6 + i] = 1;
            }
            return Outputs{multiply(activation(linear(y, Variable(first)), Activation::silu),
                                    linear(y, Variable(second)))};
        },
        {x({5, 4}, "x"), x({12, 4}, "w")});
}

TEST(Fused, LightningAttention) {
    const int64_t heads = 3, head_dim = 8;
    const Tensor slopes = Tensor::from({heads}, std::vector<float>{0.0f, 4e-8f, 0.7f});
    for (const Activation a : {Activation::none, Activation::silu, Activation::one_plus_elu, Activation::exp})
        for (const bool with_lrpe : {false, true})
            for (const int64_t length :
                 {with_lrpe ? 2 : 1, 65, 130}) {  // the gradient of theta at length 1 is zero
                const TokenLayout layout{.batch = 2, .length = length, .first_position = 1000000};
                std::vector<Tensor> inputs{x({2 * length, heads * head_dim}, "q"),
                                           x({2 * length, heads * head_dim}, "k"),
                                           x({2 * length, heads * head_dim}, "v")};
                if (with_lrpe) inputs.push_back(x({heads, head_dim}, "theta"));
                check_equal(
                    [&](const Inputs& v) {
                        LightningOptions options{
                            .heads = heads, .slopes = slopes, .qk_activation = a, .v_activation = a};
                        if (with_lrpe) options.theta = v[3];
                        return Outputs{lightning_attention(v[0], v[1], v[2], options, layout).output};
                    },
                    [&](const Inputs& v) {
                        Variable q = activation(v[0], a, head_dim), k = activation(v[1], a, head_dim);
                        if (with_lrpe) {
                            q = lrpe(q, v[3], layout);
                            k = lrpe(k, v[3], layout);
                        }
                        const LightningOptions options{.heads = heads, .slopes = slopes};
                        return Outputs{
                            lightning_attention(q, k, activation(v[2], a, head_dim), options, layout).output};
                    },
                    // theta's gradient sums terms as large as the position: allow for their cancellation.
                    inputs, with_lrpe ? 1e-8 : 1e-11);
            }
}

TEST(Fused, PackedDocumentsEqualSeparateOnes) {
    const int64_t heads = 2, width = 12;
    const Tensor slopes = Tensor::from({heads}, std::vector<float>{0.01f, 0.2f});
    const std::vector<int32_t> borders{0, 3, 3, 70, 71, 100};
    const TokenLayout packed{.batch = 1, .length = 100, .cu_seqlens = Tensor::from({6}, borders)};
    std::vector<Variable> in;
    for (const char* name : {"q", "k", "v"}) in.emplace_back(x({100, width}, name), true);
    const LightningOptions options{.heads = heads, .slopes = slopes, .qk_activation = Activation::silu};
    const Variable whole = lightning_attention(in[0], in[1], in[2], options, packed).output;
    const Tensor seed = x({100, width}, "seed");
    backward(whole, seed);
    for (size_t d = 0; d + 1 < borders.size(); ++d) {
        const int64_t start = borders[d], length = borders[d + 1] - start;
        if (length == 0) continue;
        std::vector<Variable> part;
        for (const Variable& v : in) part.emplace_back(v.value().narrow(0, start, length), true);
        const Variable alone =
            lightning_attention(part[0], part[1], part[2], options, {.batch = 1, .length = length}).output;
        EXPECT_LT(test::relative_error(whole.value().narrow(0, start, length), alone.value()), 1e-12);
        backward(alone, seed.narrow(0, start, length));
        for (size_t i = 0; i < 3; ++i)
            EXPECT_LT(test::relative_error(in[i].gradient().narrow(0, start, length), part[i].gradient()),
                      1e-12);
    }
}

TEST(Fused, WithoutTokensTheStateThatEntersLeaves) {
    const int64_t heads = 2, width = 12;
    const TokenLayout none{.batch = 3, .length = 0};
    std::vector<Variable> in;
    for (int i = 0; i < 3; ++i) in.emplace_back(Tensor::empty({0, width}, DType::f64), true);
    const Variable theta(x({heads, width / heads}, "theta"), true),
        initial(x({3, heads, width, width / heads}, "state"), true);
    const LightningResult result =
        lightning_attention(in[0], in[1], in[2],
                            {.heads = heads,
                             .slopes = Tensor::from({heads}, std::vector<float>{0.01f, 0.2f}),
                             .theta = theta,
                             .initial_state = initial,
                             .want_final_state = true},
                            none);
    EXPECT_EQ(test::relative_error(result.final_state.value(), initial.value()), 0);
    const Tensor seed = x(initial.value().shape(), "seed");
    backward(result.final_state, seed);
    EXPECT_EQ(test::relative_error(initial.gradient(), seed), 0);
    EXPECT_EQ(test::relative_error(theta.gradient(), Tensor::zeros(theta.value().shape(), DType::f64)), 0);
}

TEST(Fused, LinearCrossEntropyInAnyChunks) {
    const Tensor targets = Tensor::from({130}, [] {
        std::vector<int32_t> ids(130);
        for (size_t i = 0; i < ids.size(); ++i) ids[i] = i % 7 == 3 ? -1 : static_cast<int32_t>(i * 5 % 37);
        return ids;
    }());
    std::vector<Tensor> losses, dh, dw;
    for (const int64_t chunk : {1, 64, 129, 1000}) {
        Variable h(x({130, 16}, "h"), true), w(x({37, 16}, "w"), true);
        const auto result =
            linear_cross_entropy(h, w, targets, {.scale = 0.01, .z_loss = 1e-3, .chunk_tokens = chunk});
        backward(result.loss);
        losses.push_back(result.loss.value());
        dh.push_back(h.gradient());
        dw.push_back(w.gradient());
    }
    for (size_t i = 1; i < losses.size(); ++i) {
        EXPECT_LT(test::relative_error(losses[i], losses[0]), 1e-13);
        EXPECT_LT(test::relative_error(dh[i], dh[0]), 1e-13);
        EXPECT_LT(test::relative_error(dw[i], dw[0]), 1e-13);
    }
}

}  // namespace
}  // namespace levin
