// The order in which samples are visited: a shuffle without memory. Every function here is O(1) in the number
// of samples and depends on (seed, sample number) alone, so training resumes at any sample and any rank can
// ask for any sample.
#pragma once

#include <cstdint>
#include <vector>

namespace levin {

// A bijection of [0, size): a Feistel network over the smallest fitting power of two, walked until the result
// is inside (format-preserving encryption by cycle walking: Black and Rogaway, CT-RSA 2002). Fewer than two
// steps on average for large sizes.
class Permutation {
public:
    // size > 0. Different keys give unrelated permutations.
    Permutation(int64_t size, uint64_t key);
    int64_t operator()(int64_t index) const;

private:
    static constexpr int kRounds = 8;
    int64_t size_;
    int left_bits_, right_bits_;
    uint64_t keys_[kRounds];
};

// Sample `number` of an endless run over a data set of `size` samples: each epoch visits every sample once,
// in an order of its own (or the natural order when not shuffled).
struct SampleOrder {
    int64_t size = 0;
    uint64_t seed = 0;
    bool shuffle = true;

    int64_t epoch_of(int64_t number) const { return number / size; }
    int64_t operator()(int64_t number) const;
};

// Which of several sources sample `number` comes from, and the how-manieth sample of that source it is. Every
// block of 65536 numbers holds each source in proportion to its weight (rounded, the remainders carried on),
// shuffled.
class Mixture {
public:
    struct Draw {
        int64_t source, number;
    };
    // weights > 0, one per source, at most 250 sources.
    Mixture(const std::vector<double>& weights, uint64_t seed);
    Draw operator()(int64_t number) const;

private:
    static constexpr int64_t kBlock = 65536;
    // Samples drawn from source s before block `block`.
    int64_t drawn(int64_t source, int64_t block) const;

    std::vector<uint64_t> shares_;  // 32-bit fixed point; the share of rest_ is what the others leave
    int64_t rest_ = 0;              // the source with the largest weight
    uint64_t seed_;
};

}  // namespace levin
