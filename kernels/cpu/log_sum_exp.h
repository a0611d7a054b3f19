// Maximum and sum of exponentials of a row of logits, for the whole cross-entropy and for a rank's part of
// one.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/activation.h"

namespace levin::kernels::cpu {

// Largest logit and sum of exp(z - largest), in one pass over memory: the sum is rescaled whenever a block of
// columns (which stays in the first-level cache) brings a larger maximum. The running sum is double: it holds
// a whole vocabulary.
template <class A>
struct LogSumExp {
    A maximum;
    double sum;
};
template <class T>
LogSumExp<arithmetic_t<T>> log_sum_exp(const T* z, int64_t vocab) {
    using A = arithmetic_t<T>;
    constexpr int64_t block = 1024;
    LogSumExp<A> result{-std::numeric_limits<A>::infinity(), 0};
    for (int64_t begin = 0; begin < vocab; begin += block) {
        const int64_t end = std::min(vocab, begin + block);
        A maximum = result.maximum;
#pragma omp simd reduction(max : maximum)
        for (int64_t c = begin; c < end; ++c) maximum = std::max(maximum, load(z[c]));
        const A shift = maximum == -std::numeric_limits<A>::infinity() ? A(0) : maximum;  // all masked so far
        A sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t c = begin; c < end; ++c) sum += fast_exp(load(z[c]) - shift);
        if (result.sum > 0) result.sum *= std::exp(static_cast<double>(result.maximum - maximum));
        result.sum += static_cast<double>(sum);
        result.maximum = maximum;
    }
    return result;
}

}  // namespace levin::kernels::cpu
