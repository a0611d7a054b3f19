#include "data/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>

namespace levin {
namespace {

TEST(Permutation, IsABijectionForEverySize) {
    for (const int64_t size : {1, 2, 3, 7, 16, 100, 255, 256, 257, 1000, 4096, 10007}) {
        const Permutation permutation(size, 42);
        std::vector<bool> seen(static_cast<size_t>(size), false);
        for (int64_t i = 0; i < size; ++i) {
            const int64_t to = permutation(i);
            ASSERT_TRUE(to >= 0 && to < size);
            ASSERT_FALSE(seen[static_cast<size_t>(to)]);
            seen[static_cast<size_t>(to)] = true;
        }
    }
}

TEST(Permutation, HugeSizesStayInRange) {
    const int64_t size = (int64_t{1} << 50) + 12345;
    const Permutation permutation(size, 7);
    std::set<int64_t> seen;
    for (int64_t i = 0; i < 1000; ++i) {
        const int64_t to = permutation(size - 1 - i);
        EXPECT_TRUE(to >= 0 && to < size);
        seen.insert(to);
    }
    EXPECT_EQ(seen.size(), 1000u);
}

// Of a random permutation of 3 items, each of the 6 comes up in a sixth of the keys: 1000 of 6000, +- 4
// sigma.
TEST(Permutation, AllOrdersOfThreeComeUpEquallyOften) {
    int counts[27] = {};
    for (uint64_t key = 0; key < 6000; ++key) {
        const Permutation p(3, key);
        ++counts[p(0) * 9 + p(1) * 3 + p(2)];
    }
    const int orders[] = {5, 7, 11, 15, 19, 21};  // 012 021 102 120 201 210
    for (const int order : orders) EXPECT_NEAR(counts[order], 1000, 120);
}

TEST(Permutation, NeighboursAreScattered) {
    const int64_t size = 100000;
    const Permutation permutation(size, 3);
    double sum = 0;
    int same_step = 0;
    for (int64_t i = 0; i + 1 < size; ++i) {
        const int64_t step = permutation(i + 1) - permutation(i);
        sum += static_cast<double>(std::abs(step));
        same_step += step == 1;
    }
    EXPECT_NEAR(sum / static_cast<double>(size), static_cast<double>(size) / 3,
                size * 0.01);  // of independent draws
    EXPECT_LT(same_step, 20);
}

TEST(SampleOrder, VisitsEverySampleOnceAnEpochInAnotherOrderEachTime) {
    const SampleOrder order{1000, 5, true};
    std::vector<std::vector<int64_t>> epochs(3);
    for (int64_t number = 0; number < 3000; ++number)
        epochs[static_cast<size_t>(number / 1000)].push_back(order(number));
    EXPECT_NE(epochs[0], epochs[1]);
    EXPECT_NE(epochs[1], epochs[2]);
    std::vector<int64_t> natural(1000);
    std::iota(natural.begin(), natural.end(), 0);
    for (auto& epoch : epochs) {
        EXPECT_NE(epoch, natural);
        std::sort(epoch.begin(), epoch.end());
        EXPECT_EQ(epoch, natural);
    }
}

TEST(SampleOrder, DependsOnSeedAndNumberAlone) {
    const SampleOrder a{1000, 5, true}, b{1000, 5, true}, other{1000, 6, true}, plain{1000, 5, false};
    int same = 0;
    for (int64_t number = 2999; number >= 0; number -= 7) {  // any order of asking
        EXPECT_EQ(a(number), b(number));
        EXPECT_EQ(plain(number), number % 1000);
        same += a(number) == other(number);
    }
    EXPECT_LT(same, 10);
}

TEST(Mixture, HoldsItsProportionsAndSkipsNoSample) {
    const Mixture mixture({0.5, 0.3, 0.2}, 1);
    std::vector<std::vector<int64_t>> numbers(3);
    const int64_t total = 200000;
    for (int64_t number = 0; number < total; ++number) {
        const Mixture::Draw draw = mixture(number);
        numbers[static_cast<size_t>(draw.source)].push_back(draw.number);
    }
    const double shares[] = {0.5, 0.3, 0.2};
    for (size_t s = 0; s < 3; ++s) {
        const double count = static_cast<double>(numbers[s].size());
        EXPECT_NEAR(count / static_cast<double>(total), shares[s], 0.005);
        std::sort(numbers[s].begin(), numbers[s].end());
        EXPECT_EQ(std::adjacent_find(numbers[s].begin(), numbers[s].end()), numbers[s].end());
    }
    // Whole blocks use up exactly the first numbers of each source.
    int64_t largest[3] = {-1, -1, -1}, count[3] = {};
    for (int64_t number = 0; number < 2 * 65536; ++number) {
        const Mixture::Draw draw = mixture(number);
        largest[draw.source] = std::max(largest[draw.source], draw.number);
        ++count[draw.source];
    }
    for (int s = 0; s < 3; ++s) EXPECT_EQ(largest[s] + 1, count[s]);
}

TEST(Mixture, TinyWeightsAndManySources) {
    std::vector<double> weights(250, 1e-6);
    weights[17] = 1;
    const Mixture mixture(weights, 9);
    for (int64_t number = 0; number < 1000; ++number) {
        const Mixture::Draw draw = mixture(number * 1'000'003);
        EXPECT_TRUE(draw.source >= 0 && draw.source < 250 && draw.number >= 0);
    }
}

}  // namespace
}  // namespace levin
