// Counter-based random numbers (Philox 4x32-10, Salmon et al. 2011): every number is a function of (seed,
// name, index), so a run means the same at any layout, thread count and after any resume.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "core/tensor.h"

namespace levin {

// Ten rounds of Philox on a 128-bit counter under a 64-bit key.
std::array<uint32_t, 4> philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

class Random {
public:
    // `name` says what the numbers are for (a parameter's global name, "sample", ..): streams do not overlap.
    Random(uint64_t seed, std::string_view name);

    uint64_t bits(uint64_t index) const;
    double uniform(uint64_t index) const;  // in [0, 1), 53 bits
    double normal(uint64_t index) const;   // mean 0, variance 1 (Box-Muller)

private:
    friend void fill_normal(const Tensor&, const Random&, double, uint64_t, int64_t);

    std::array<uint32_t, 2> key_;
    std::array<uint32_t, 2> stream_;
};

// tensor[r, c] = deviation * normal(first_index + r * row_step + c), over all rows r (all dimensions but the
// last) of a tensor of floating type, made where it lies: the same bits on every device. A row_step of 0 is
// the row's length, so that the numbers go on from row to row; the length of a longer row makes a part of its
// columns.
void fill_normal(const Tensor& tensor, const Random& random, double deviation, uint64_t first_index = 0,
                 int64_t row_step = 0);

}  // namespace levin
