// Counter-based random numbers of the data room: a hash of (key, counter), so that any number can be had
// without the ones before it.
#pragma once

#include <cstdint>

namespace levin {

// The finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): a bijection in which every input bit reaches
// every output bit.
constexpr uint64_t mix_bits(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}
constexpr uint64_t counter_hash(uint64_t key, uint64_t counter) {
    constexpr uint64_t kGolden = 0x9E3779B97F4A7C15u;
    return mix_bits(mix_bits(key + kGolden) + (counter + 1) * kGolden);
}

}  // namespace levin
