#include "kernels/cross_entropy.h"

#include <limits>

#include "kernels/backends.h"
#include "kernels/cpu/activation.h"
#include "kernels/cpu/loops.h"

namespace levin::kernels::cpu {
namespace {

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

}  // namespace

void cross_entropy(const CrossEntropy& args) {
    with_floating(args.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        using A = arithmetic_t<T>;
        for_each_row(args.rows, args.vocab, [&](int64_t r) {
            T* z = static_cast<T*>(args.logits) + r * args.stride;
            const int64_t target = args.targets[r];
            A& loss = static_cast<A*>(args.loss)[r];
            const bool gradient = args.gradient_scale != 0;
            if (target < 0) {
                loss = 0;
                if (gradient) std::fill(z, z + args.stride, T{});
                return;
            }
            const auto [maximum, sum] = log_sum_exp(z, args.vocab);
            const double lse = static_cast<double>(maximum) + std::log(sum);
            const double at_target = static_cast<double>(load(z[target]));
            loss = static_cast<A>(lse - at_target + args.z_loss * lse * lse);
            if (!gradient) return;
            const double pull = args.gradient_scale * (1 + 2 * args.z_loss * lse) / sum;
            const A factor = static_cast<A>(pull), top = maximum;
#pragma omp simd
            for (int64_t c = 0; c < args.vocab; ++c) z[c] = narrow<T>(factor * fast_exp(load(z[c]) - top));
            // exp - 1 cancels where the model is sure: formed in double from the logit itself.
            z[target] = narrow<T>(static_cast<A>(pull * std::exp(at_target - static_cast<double>(maximum)) -
                                                 args.gradient_scale));
            std::fill(z + args.vocab, z + args.stride, T{});
        });
    });
}

}  // namespace levin::kernels::cpu
