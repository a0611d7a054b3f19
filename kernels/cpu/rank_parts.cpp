#include "kernels/rank_parts.h"

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/backends.h"
#include "kernels/cpu/activation.h"
#include "kernels/cpu/log_sum_exp.h"
#include "kernels/cpu/loops.h"

namespace levin::kernels::cpu {

void row_squares(const RowSquares& args) {
    with_floating(args.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        using A = arithmetic_t<T>;
        for_each_row(args.rows, args.columns, [&](int64_t r) {
            const T* x = static_cast<const T*>(args.x) + r * args.x_stride;
            A sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t c = 0; c < args.columns; ++c) sum += load(x[c]) * load(x[c]);
            static_cast<A*>(args.sum)[r] = sum;
        });
    });
}

void rms_factor(const RmsFactor& args) {
    with_floating(args.acc, [&](auto type) {
        using A = typename decltype(type)::type;
        const auto width = static_cast<arithmetic_t<A>>(args.width),
                   eps = static_cast<arithmetic_t<A>>(args.eps);
        for (int64_t r = 0; r < args.rows; ++r)
            static_cast<A*>(args.factor)[r] =
                narrow<A>(1 / std::sqrt(load(static_cast<const A*>(args.sum)[r]) / width + eps));
    });
}

void rms_factor_gradient(const RmsFactorGradient& args) {
    with_floating(args.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        using A = arithmetic_t<T>;
        for_each_row(args.rows, args.columns, [&](int64_t r) {
            const T* dy = static_cast<const T*>(args.dy) + r * args.dy_stride;
            const T* y = static_cast<const T*>(args.y) + r * args.y_stride;
            A sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t c = 0; c < args.columns; ++c) sum += load(dy[c]) * load(y[c]);
            const A factor = static_cast<const A*>(args.factor)[r];
            static_cast<A*>(args.coefficient)[r] = -factor * factor * (sum / static_cast<A>(args.width));
        });
    });
}

void row_scale(const RowScale& args) {
    with_floating(args.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        using A = arithmetic_t<T>;
        const A beta = static_cast<A>(args.beta);
        for_each_row(args.rows, args.columns, [&](int64_t r) {
            const T* x = static_cast<const T*>(args.x) + r * args.x_stride;
            T* y = static_cast<T*>(args.y) + r * args.y_stride;
            const A factor = static_cast<const A*>(args.factor)[r];
            if (beta == 0) {  // y may hold anything
#pragma omp simd
                for (int64_t c = 0; c < args.columns; ++c) y[c] = narrow<T>(factor * load(x[c]));
            } else {
#pragma omp simd
                for (int64_t c = 0; c < args.columns; ++c)
                    y[c] = narrow<T>(factor * load(x[c]) + beta * load(y[c]));
            }
        });
    });
}

void cross_entropy_parts(const CrossEntropyParts& args) {
    with_floating(args.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        using A = arithmetic_t<T>;
        for_each_row(args.rows, args.vocab, [&](int64_t r) {
            const T* z = static_cast<const T*>(args.logits) + r * args.stride;
            const int64_t place = args.targets[r] < 0 ? -1 : args.targets[r] - args.first;
            const auto [maximum, sum] = log_sum_exp(z, args.vocab);
            A* part = static_cast<A*>(args.parts) + 3 * r;
            part[0] = maximum;
            part[1] = static_cast<A>(sum);
            part[2] = place >= 0 && place < args.vocab ? static_cast<A>(load(z[place])) : A(0);
        });
    });
}

void cross_entropy_join(const CrossEntropyJoin& args) {
    with_floating(args.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        using A = arithmetic_t<T>;
        for_each_row(args.rows, args.vocab, [&](int64_t r) {
            T* z = static_cast<T*>(args.logits) + r * args.stride;
            A& loss = static_cast<A*>(args.loss)[r];
            const bool gradient = args.gradient_scale != 0;
            if (args.targets[r] < 0) {
                loss = 0;
                if (gradient) std::fill(z, z + args.stride, T{});
                return;
            }
            A maximum = -std::numeric_limits<A>::infinity();
            const auto part = [&](int64_t p) {
                return static_cast<const A*>(args.parts) + 3 * (p * args.rows + r);
            };
            double sum = 0, at_target = 0;
            for (int64_t p = 0; p < args.ranks; ++p) maximum = std::max(maximum, part(p)[0]);
            for (int64_t p = 0; p < args.ranks; ++p) {
                if (part(p)[1] != 0)
                    sum +=
                        static_cast<double>(part(p)[1]) * std::exp(static_cast<double>(part(p)[0] - maximum));
                at_target += static_cast<double>(part(p)[2]);
            }
            const double lse = static_cast<double>(maximum) + std::log(sum);
            loss = static_cast<A>(lse - at_target + args.z_loss * lse * lse);
            if (!gradient) return;
            const double pull = args.gradient_scale * (1 + 2 * args.z_loss * lse) / sum;
            const A factor = static_cast<A>(pull), top = maximum;
#pragma omp simd
            for (int64_t c = 0; c < args.vocab; ++c) z[c] = narrow<T>(factor * fast_exp(load(z[c]) - top));
            const int64_t place = args.targets[r] - args.first;
            if (place >= 0 && place < args.vocab)  // exp - 1 cancels where the model is sure: in double
                z[place] = narrow<T>(static_cast<A>(
                    pull * std::exp(at_target - static_cast<double>(maximum)) - args.gradient_scale));
            std::fill(z + args.vocab, z + args.stride, T{});
        });
    });
}

void state_sum(const StateSum& args) {
    with_floating(args.acc, [&](auto type) {
        using A = typename decltype(type)::type;
        using R = arithmetic_t<A>;
        const int64_t each = args.sequences * args.heads * args.elements;
        for_each_row(args.sequences * args.heads, args.elements, [&](int64_t r) {
            A* out = static_cast<A*>(args.out) + r * args.elements;
            std::fill(out, out + args.elements, A{});
            const auto slope = static_cast<double>(args.slopes[r % args.heads]);
            for (int64_t p = 0; p < args.parts; ++p) {
                if (args.distance[p] < 0) continue;
                const A* state = static_cast<const A*>(args.states) + p * each + r * args.elements;
                const R decay = static_cast<R>(std::exp(-slope * static_cast<double>(args.distance[p])));
#pragma omp simd
                for (int64_t e = 0; e < args.elements; ++e)
                    out[e] = narrow<A>(load(out[e]) + decay * load(state[e]));
            }
        });
    });
}

}  // namespace levin::kernels::cpu
