// What the model tests compare with: token ids from a fixed seed, and how far two tensors are apart.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/random.h"
#include "core/tensor.h"

namespace levin::test {

// `count` ids below the 37 tokens of the small models.
inline Tensor ids(int64_t count, const char* name = "ids", const Device& device = {}) {
    const Random random(5, name);
    std::vector<int32_t> values(static_cast<size_t>(count));
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<int32_t>(random.bits(i) % 37);
    return Tensor::from({count}, values, device);
}

// Norm of a - b over that of b. `least`: its square is at least this; with 0, a zero b fails any bound.
inline double relative_error(const Tensor& a, const Tensor& b, double least = 0) {
    const auto x = a.to_vector(), y = b.to_vector();
    double difference = 0, norm = 0;
    for (size_t i = 0; i < std::min(x.size(), y.size()); ++i) {
        difference += (x[i] - y[i]) * (x[i] - y[i]);
        norm += y[i] * y[i];
    }
    return x.size() == y.size() ? std::sqrt(difference / std::max(norm, least)) : INFINITY;
}

}  // namespace levin::test
