// The graph itself: accumulation, ownership, hooks, recomputation.
#include "core/ops.h"
#include "tests/core/gradient_check.h"

namespace levin {
namespace {

using namespace ops;
using test::random_tensor;

Variable leaf(const Shape& shape, const char* name, DType dtype = DType::f64) {
    return Variable(random_tensor(shape, name, 1, dtype), true);
}
std::vector<double> bits(const Tensor& tensor) { return tensor.to_vector(); }

TEST(Autograd, GradientsAccumulateOverPassesAndClear) {
    Variable x = leaf({3}, "x");
    const Tensor one = Tensor::full({3}, 1, DType::f64);
    backward(scale(x, 2), one);
    backward(scale(x, 3), one);
    EXPECT_EQ(bits(x.gradient()), (std::vector<double>{5, 5, 5}));
    x.clear_gradient();
    EXPECT_FALSE(x.gradient().defined());
    backward(scale(x, 4), one);
    EXPECT_EQ(bits(x.gradient()), (std::vector<double>{4, 4, 4}));
}

TEST(Autograd, Bf16LeavesAccumulateInF32) {
    Variable w = leaf({4, 8}, "w", DType::bf16);
    const Variable x(random_tensor({6, 8}, "x", 1, DType::bf16));
    backward(linear(x, w), Tensor::full({6, 4}, 1, DType::bf16));
    EXPECT_EQ(w.gradient().dtype(), DType::f32);
    // 256 + 1 is no bf16 number: it would be lost in a bf16 sum.
    w.clear_gradient();
    const Variable ones(Tensor::full({257, 8}, 1, DType::bf16));
    backward(linear(ones, w), Tensor::full({257, 4}, 1, DType::bf16));
    EXPECT_EQ(w.gradient().to_vector()[0], 257);
}

// Memory in the value's own type for a gradient that is formed once: what forms it rounds it once.
TEST(Autograd, AGradientMayBeFormedInTheTypeOfItsValue) {
    const Tensor ids = Tensor::from({6}, std::vector<int32_t>{0, 2, 2, 1, 2, 3});
    const Tensor targets = Tensor::from({6}, std::vector<int32_t>{1, 0, 3, 3, 2, 0});
    const char* names[] = {"linear", "bias", "norm weight", "table", "head in one go", "head in chunks"};
    std::vector<std::vector<Tensor>> gradients;
    for (const bool narrow : {false, true}) {
        std::vector<Variable> leaves{leaf({8, 8}, "w", DType::bf16), leaf({8}, "b", DType::bf16),
                                     leaf({8}, "n", DType::bf16),    leaf({4, 8}, "e", DType::bf16),
                                     leaf({4, 8}, "h", DType::bf16), leaf({4, 8}, "c", DType::bf16)};
        if (narrow)
            for (Variable& one : leaves) {
                one.set_gradient_buffer(Tensor::full(one.shape(), 7, DType::bf16));  // to be overwritten
                EXPECT_EQ(one.gradient_type(), DType::bf16);
            }
        int hooks = 0;
        for (Variable& one : leaves) one.set_gradient_hook([&](Variable&) { ++hooks; });
        const Variable x =
            rms_norm(linear(embedding(leaves[3], ids, 1), leaves[0], leaves[1]), leaves[2], 1e-6);
        const auto whole = linear_cross_entropy(x, leaves[4], targets);
        const auto chunks = linear_cross_entropy(x, leaves[5], targets, {.chunk_tokens = 2});
        backward(std::vector<Variable>{whole.loss, chunks.loss}, std::vector<Tensor>(2));
        EXPECT_EQ(hooks, 6);
        gradients.emplace_back();
        for (const Variable& one : leaves) {
            EXPECT_EQ(one.gradient().dtype(), narrow ? DType::bf16 : DType::f32);
            gradients.back().push_back(one.gradient().to(DType::bf16));
        }
    }
    for (size_t i = 0; i < gradients[0].size(); ++i)
        EXPECT_EQ(bits(gradients[1][i]), bits(gradients[0][i])) << names[i];
    // A second contribution is added, and rounded again.
    Variable twice = leaf({1, 2}, "w", DType::bf16);
    twice.set_gradient_buffer(Tensor::empty({1, 2}, DType::bf16));
    const Variable ones(Tensor::full({3, 2}, 1, DType::bf16));
    for (int i = 0; i < 2; ++i) backward(linear(ones, twice), Tensor::full({3, 1}, 1, DType::bf16));
    EXPECT_EQ(bits(twice.gradient()), (std::vector<double>{6, 6}));
    EXPECT_THROW(twice.set_gradient_buffer(Tensor::empty({1, 2}, DType::f64)), Error);
}

TEST(Autograd, WithoutGradientsNothingIsSaved) {
    Variable x = leaf({64, 64}, "x");
    const size_t before = memory_statistics({}).live_total;
    {
        NoGradient off;
        Variable y = x;
        for (int i = 0; i < 10; ++i) y = srms_norm(y, 1e-6);
        EXPECT_FALSE(y.requires_grad());
        EXPECT_LE(memory_statistics({}).live_total, before + 64 * 64 * 8 + 64 * 8 + 4096);
    }
    EXPECT_EQ(memory_statistics({}).live_total, before);
}

TEST(Autograd, BackwardReleasesWhatWasSavedAndRunsOnce) {
    Variable x = leaf({64, 64}, "x");
    Variable y = x;
    for (int i = 0; i < 10; ++i) y = srms_norm(y, 1e-6);
    const size_t before = memory_statistics({}).live_total;
    backward(y, Tensor::full({64, 64}, 1, DType::f64));
    EXPECT_LT(memory_statistics({}).live_total, before - 7 * 64 * 64 * 8);
    EXPECT_THROW(backward(y, Tensor::full({64, 64}, 1, DType::f64)), Error);
}

TEST(Autograd, AGraphThatIsDroppedIsFreed) {
    const size_t before = memory_statistics({}).live_total;
    {
        Variable x = leaf({32, 32}, "x");
        const auto parts = split(linear(x, leaf({64, 32}, "w")), {32, 32});
        const Variable y = glu(parts[0], parts[1], Activation::silu);
        EXPECT_TRUE(y.requires_grad());
    }
    EXPECT_EQ(memory_statistics({}).live_total, before);
}

TEST(Autograd, LongChainsDoNotOverflowTheStack) {
    Variable x = leaf({1}, "x");
    Variable y = x;
    for (int i = 0; i < 50000; ++i) y = scale(y, 1);
    backward(y);
    EXPECT_EQ(x.gradient().item(), 1);
}

TEST(Autograd, HooksFireOnceWhenTheGradientIsComplete) {
    Variable used_twice = leaf({4, 4}, "a"), used_once = leaf({4, 4}, "b");
    std::vector<std::string> fired;
    std::vector<double> seen;
    used_twice.set_gradient_hook([&](Variable& v) {
        fired.push_back("twice");
        seen = v.gradient().to_vector();
    });
    used_once.set_gradient_hook([&](Variable&) { fired.push_back("once"); });
    // used_once is the last op, so its gradient is there first.
    const Variable y = linear(linear(linear(leaf({2, 4}, "x"), used_twice), used_twice), used_once);
    backward(y, Tensor::full({2, 4}, 1, DType::f64));
    EXPECT_EQ(fired, (std::vector<std::string>{"once", "twice"}));
    EXPECT_EQ(seen, used_twice.gradient().to_vector());
    // The next pass fires again.
    backward(linear(leaf({2, 4}, "x"), used_once), Tensor::full({2, 4}, 1, DType::f64));
    EXPECT_EQ(fired.size(), 3u);
}

TEST(Autograd, GradientBuffersCanBeViewsOfABucket) {
    Tensor bucket = Tensor::full({32}, NAN, DType::f64);
    Variable w = leaf({4, 4}, "w");
    w.set_gradient_buffer(bucket.narrow(0, 8, 16).view({4, 4}));
    backward(linear(Variable(random_tensor({3, 4}, "x")), w), Tensor::full({3, 4}, 1, DType::f64));
    EXPECT_TRUE(w.gradient().shares_storage(bucket));
    EXPECT_FALSE(std::isnan(bucket.to_vector()[8]));
    EXPECT_TRUE(std::isnan(bucket.to_vector()[7]));
}

// A small block with every kind of consumer, for the recomputation tests.
Variable block(const Variable& x, const Variable& w1, const Variable& w2) {
    const auto [h, y] = add_srms_norm(x, scale(x, 0.5), 1e-6);
    const auto parts = split(linear(y, w1), {8, 8});
    return add(h, linear(glu(parts[0], parts[1], Activation::silu), w2));
}

TEST(Autograd, RecomputationGivesTheSameBitsForLessMemory) {
    std::vector<std::vector<double>> gradients[3];
    size_t live[3];
    int hooks[3] = {0, 0, 0};
    for (int mode = 0; mode < 3; ++mode) {  // none, selective, full
        Variable x = leaf({40, 8}, "x"), w1 = leaf({16, 8}, "w1"), w2 = leaf({8, 8}, "w2");
        w1.set_gradient_hook([&](Variable&) { ++hooks[mode]; });
        const size_t before = memory_statistics({}).live_total;
        const SelectiveRecomputation selective(mode == 1);
        Variable y = x;
        for (int i = 0; i < 3; ++i) {
            if (mode == 2)
                y = recompute([&](const Variable& in) { return block(in, w1, w2); }, y);
            else
                y = block(y, w1, w2);
        }
        live[mode] = memory_statistics({}).live_total - before;
        backward(y, random_tensor({40, 8}, "seed"));
        for (const Variable& v : {x, w1, w2}) gradients[mode].push_back(bits(v.gradient()));
    }
    EXPECT_EQ(gradients[1], gradients[0]);
    EXPECT_EQ(gradients[2], gradients[0]);
    EXPECT_LT(live[1], live[0]);
    EXPECT_LT(live[2], live[1]);
    EXPECT_EQ(hooks[0], 1);
    EXPECT_EQ(hooks[1], 1);
    EXPECT_EQ(hooks[2], 1);
}

// Slices of two rows, y = w x + half the slice before, which is the state.
Variable scan_of_rows(const Variable& x, const Variable& w, Variable& state) {
    const Variable wx = multiply(x, w);
    state = state.defined() ? add(wx, scale(state, 0.5)) : wx;
    return state;
}

TEST(Autograd, SlicesHandOnTheirStateAndItsGradient) {
    // The third one starts anew.
    const std::vector<RowSlice> slices{
        {0, 2, false}, {2, 2, true}, {4, 2, false}, {6, 2, true}, {8, 2, true}};
    Variable x = leaf({10, 1}, "x"), w = leaf({2, 1}, "w");
    int hooks = 0;
    w.set_gradient_hook([&](Variable&) { ++hooks; });
    const Tensor seed = random_tensor({10, 1}, "seed");
    const Variable y =
        recompute([&](size_t, const Variable& rows, Variable& state) { return scan_of_rows(rows, w, state); },
                  x, slices);
    backward(y, seed);
    EXPECT_EQ(hooks, 1);

    const auto xs = bits(x.value()), ws = bits(w.value()), seeds = bits(seed), ys = bits(y.value());
    std::vector<double> expected(10), dx(10), dw(2);
    for (size_t t = 0; t < 10; ++t) {
        const bool continues = slices[t / 2].continues;
        expected[t] = ws[t % 2] * xs[t] + (continues ? 0.5 * expected[t - 2] : 0);
    }
    std::vector<double> dy = seeds;
    for (size_t t = 10; t-- > 0;) {
        if (slices[t / 2].continues) dy[t - 2] += 0.5 * dy[t];
        dx[t] = dy[t] * ws[t % 2];
        dw[t % 2] += dy[t] * xs[t];
    }
    for (size_t t = 0; t < 10; ++t) {
        EXPECT_NEAR(ys[t], expected[t], 1e-14);
        EXPECT_NEAR(x.gradient().to_vector()[t], dx[t], 1e-14);
    }
    for (size_t i = 0; i < 2; ++i) EXPECT_NEAR(w.gradient().to_vector()[i], dw[i], 1e-14);
    EXPECT_THROW(recompute([](size_t, const Variable& rows, Variable&) { return rows; }, x, {{0, 9, false}}),
                 Error);
}

TEST(Autograd, SlicesWriteTheGradientOverItselfUnlessItIsSomebodysElse) {
    Variable x = leaf({256, 64}, "x"), w1 = leaf({16, 64}, "w1"), w2 = leaf({64, 8}, "w2");
    std::vector<RowSlice> slices;
    for (int64_t i = 0; i < 32; ++i) slices.push_back({8 * i, 8, false});
    const auto sliced = [&](const Variable& in) {
        return recompute([&](size_t, const Variable& rows, Variable&) { return block(rows, w1, w2); }, in,
                         slices);
    };
    const Tensor seed = random_tensor({256, 64}, "seed");
    const auto kept = bits(seed);
    for (int pass = 0; pass < 2; ++pass) {  // the first one makes the leaves' gradients
        const Variable y = sliced(sliced(sliced(scale(x, 2))));
        const size_t before = memory_statistics({}).live_total;
        reset_peak_memory({});
        backward(y, seed);
        const double streams =
            static_cast<double>(memory_statistics({}).peak_total - before) / (256 * 64 * 8);
        if (pass == 0) continue;
        EXPECT_LT(streams, 1.6);  // one gradient, and what a slice of a 32nd takes
    }
    EXPECT_EQ(bits(seed), kept);
    const auto gradient = bits(x.gradient());
    x.clear_gradient();
    for (int pass = 0; pass < 2; ++pass)
        backward(block(block(block(scale(x, 2), w1, w2), w1, w2), w1, w2), seed);
    for (size_t i = 0; i < gradient.size(); ++i) EXPECT_NEAR(bits(x.gradient())[i], gradient[i], 1e-10);
}

TEST(Autograd, ARegionThatLeavesItsInputOutGivesItAZeroGradient) {
    Variable x = leaf({4, 2}, "x"), w = leaf({4, 2}, "w");
    const Variable y = recompute([&](const Variable&) { return scale(w, 3); }, scale(x, 1));
    backward(y, Tensor::full({4, 2}, 1, DType::f64));
    for (const double value : bits(x.gradient())) EXPECT_EQ(value, 0);
    for (const double value : bits(w.gradient())) EXPECT_EQ(value, 3);
}

TEST(Autograd, RootsWithoutASeedCountAsOneWhateverMadeThem) {
    Variable x = leaf({1, 2}, "x");
    const auto of_region = [&] {
        return recompute([](const Variable& in) { return scale(split(in, {1, 1})[0], 3); }, x);
    };
    backward(of_region());
    EXPECT_EQ(bits(x.gradient()), (std::vector<double>{3, 0}));
    x.clear_gradient();
    backward(split(x, {1, 1})[1]);
    EXPECT_EQ(bits(x.gradient()), (std::vector<double>{0, 1}));
    // A root that is also reached from another one counts twice.
    Variable y = leaf({1}, "y");
    const Variable inner = scale(y, 2), outer = scale(inner, 5);
    backward(std::vector<Variable>{inner, outer}, std::vector<Tensor>(2));
    EXPECT_EQ(y.gradient().item(), 12);
}

TEST(Autograd, ASharedTrunkRunsBackwardOnce) {
    Variable x = leaf({2}, "x");
    const Variable trunk = scale(x, 2), a = scale(trunk, 3), b = scale(trunk, 4);
    const Tensor one = Tensor::full({2}, 1, DType::f64);
    backward(a, one);
    EXPECT_THROW(backward(b, one), Error);
    EXPECT_EQ(bits(x.gradient()), (std::vector<double>{6, 6}));
}

TEST(Autograd, ALossThatIsNotTheRootIsRefused) {
    Variable h = leaf({2, 4}, "h"), w = leaf({3, 4}, "w");
    const Tensor targets = Tensor::from({2}, std::vector<int32_t>{0, 1});
    const auto result = linear_cross_entropy(h, w, targets);
    EXPECT_THROW(backward(scale(result.loss, 2)), Error);
}

}  // namespace
}  // namespace levin
