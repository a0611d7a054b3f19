#include "data/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "data/counter_hash.h"
#include "kernels/base/error.h"

namespace levin {

namespace {

// Small domains would allow a Feistel network only a few of their permutations.
constexpr int kFewestBits = 8;
constexpr uint64_t kMixtureKey = 0x6D69787475726573u;

}  // namespace

Permutation::Permutation(int64_t size, uint64_t key) : size_(size) {
    LEVIN_CHECK(size > 0, "sampler", "a permutation of {} items", size);
    const int bits =
        std::max<int>(kFewestBits, static_cast<int>(std::bit_width(static_cast<uint64_t>(size - 1))));
    left_bits_ = bits / 2;
    right_bits_ = bits - left_bits_;
    for (int round = 0; round < kRounds; ++round)
        keys_[round] = counter_hash(key, static_cast<uint64_t>(round));
}

int64_t Permutation::operator()(int64_t index) const {
    LEVIN_CHECK(index >= 0 && index < size_, "sampler", "index {} of a permutation of {}", index, size_);
    const uint64_t left_mask = (uint64_t{1} << left_bits_) - 1, right_mask = (uint64_t{1} << right_bits_) - 1;
    auto value = static_cast<uint64_t>(index);
    do {  // stays in the domain of left_bits + right_bits; a bijection there walks back into [0, size) in the
          // end
        uint64_t left = value >> right_bits_, right = value & right_mask;
        for (int round = 0; round < kRounds; round += 2) {
            left = (left ^ mix_bits(right + keys_[round])) & left_mask;
            right = (right ^ mix_bits(left + keys_[round + 1])) & right_mask;
        }
        value = left << right_bits_ | right;
    } while (value >= static_cast<uint64_t>(size_));
    return static_cast<int64_t>(value);
}

int64_t SampleOrder::operator()(int64_t number) const {
    LEVIN_CHECK(size > 0 && number >= 0, "sampler", "sample {} of a data set of {}", number, size);
    const int64_t epoch = number / size, index = number % size;
    if (!shuffle) return index;
    return Permutation(size, counter_hash(seed, static_cast<uint64_t>(epoch)))(index);
}

Mixture::Mixture(const std::vector<double>& weights, uint64_t seed) : seed_(counter_hash(seed, kMixtureKey)) {
    LEVIN_CHECK(!weights.empty() && weights.size() <= 250, "sampler", "a mixture of {} sources",
                weights.size());
    double sum = 0;
    for (const double weight : weights) sum += weight;
    for (const double weight : weights) {
        LEVIN_CHECK(weight > 0 && std::isfinite(weight), "sampler", "weight {}", weight);
        shares_.push_back(std::max<uint64_t>(1, static_cast<uint64_t>(std::ldexp(weight / sum, 32))));
    }
    rest_ = std::max_element(shares_.begin(), shares_.end()) - shares_.begin();
}

int64_t Mixture::drawn(int64_t source, int64_t block) const {
    const auto numbers = static_cast<unsigned __int128>(block * kBlock);
    if (source != rest_) return static_cast<int64_t>(numbers * shares_[static_cast<size_t>(source)] >> 32);
    int64_t left = block * kBlock;
    for (int64_t s = 0; s < static_cast<int64_t>(shares_.size()); ++s) {
        if (s != rest_) left -= drawn(s, block);
    }
    return left;
}

Mixture::Draw Mixture::operator()(int64_t number) const {
    LEVIN_CHECK(number >= 0, "sampler", "sample {} of a mixture", number);
    const int64_t block = number / kBlock;
    int64_t place = Permutation(kBlock, counter_hash(seed_, static_cast<uint64_t>(block)))(number % kBlock);
    for (int64_t s = 0; s < static_cast<int64_t>(shares_.size()); ++s) {
        const int64_t before = drawn(s, block), here = drawn(s, block + 1) - before;
        if (place < here) return {s, before + place};
        place -= here;
    }
    fail(Fault::internal, "sampler", "sample {} fits no source", number);
}

}  // namespace levin
