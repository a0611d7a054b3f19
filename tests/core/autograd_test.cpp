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
                y = recompute(
                    [&](std::span<const Variable> in) { return std::vector<Variable>{block(in[0], w1, w2)}; },
                    {y})[0];
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

TEST(Autograd, RootsWithoutASeedCountAsOneWhateverMadeThem) {
    Variable x = leaf({1, 2}, "x");
    const auto of_region = [&] {
        return recompute(
            [](std::span<const Variable> in) {
                return std::vector<Variable>{scale(split(in[0], {1, 1})[0], 3)};
            },
            {x});
    };
    backward(of_region()[0]);
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
