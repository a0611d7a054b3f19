#include "kernels/cross_entropy.h"

#include "kernels/backends.h"
#include "kernels/cpu/activation.h"
#include "kernels/cpu/log_sum_exp.h"
#include "kernels/cpu/loops.h"

namespace levin::kernels::cpu {
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
