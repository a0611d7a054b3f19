#include "kernels/srms_norm.h"

#include "kernels/backends.h"
#include "kernels/base/error.h"
#include "kernels/cpu/activation.h"
#include "kernels/cpu/loops.h"

namespace levin::kernels::cpu {
namespace {

template <class T>
arithmetic_t<T> reciprocal_rms(arithmetic_t<T> sum_of_squares, int64_t width, double eps) {
    using A = arithmetic_t<T>;
    return A(1) / std::sqrt(sum_of_squares / static_cast<A>(width) + static_cast<A>(eps));
}

template <class Body>
void with_gate(Activation gate, const Body& body) {
    switch (gate) {
        case Activation::none:
            return body(std::integral_constant<Activation, Activation::none>{});
        case Activation::sigmoid:
            return body(std::integral_constant<Activation, Activation::sigmoid>{});
        default:
            fail(Fault::internal, "gated_srms_norm", "gate {} given, expected none or sigmoid",
                 static_cast<int>(gate));
    }
}

}  // namespace

void srms_norm_forward(const SrmsNormForward& args) {
    with_floating(args.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        using A = arithmetic_t<T>;
        const int64_t width = args.width;
        for_each_row(args.rows, width, [&](int64_t r) {
            const T* x = static_cast<const T*>(args.x) + r * args.x_stride;
            A sum = 0;
            if (args.branch) {
                const T* branch = static_cast<const T*>(args.branch) + r * width;
                T* h = static_cast<T*>(args.h) + r * width;
#pragma omp simd reduction(+ : sum)
                for (int64_t c = 0; c < width; ++c) {
                    const A value = round_to<T>(load(x[c]) + load(branch[c]));
                    h[c] = narrow<T>(value);
                    sum += value * value;
                }
                x = h;
            } else {
#pragma omp simd reduction(+ : sum)
                for (int64_t c = 0; c < width; ++c) sum += load(x[c]) * load(x[c]);
            }
            const A rstd = reciprocal_rms<T>(sum, width, args.eps);
            static_cast<A*>(args.rstd)[r] = rstd;
            if (!args.y) return;
            T* y = static_cast<T*>(args.y) + r * width;
#pragma omp simd
            for (int64_t c = 0; c < width; ++c) y[c] = narrow<T>(load(x[c]) * rstd);
        });
    });
}

void srms_norm_backward(const SrmsNormBackward& args) {
    with_floating(args.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        using A = arithmetic_t<T>;
        const int64_t width = args.width;
        for_each_row(args.rows, width, [&](int64_t r) {
            const T* x = static_cast<const T*>(args.x) + r * args.x_stride;
            const T* dy = static_cast<const T*>(args.dy) + r * width;
            T* dx = static_cast<T*>(args.dx) + r * args.dx_stride;
            const A rstd = static_cast<const A*>(args.rstd)[r];
            A dot = 0;
#pragma omp simd reduction(+ : dot)
            for (int64_t c = 0; c < width; ++c) dot += load(x[c]) * load(dy[c]);
            // (dy - x rstd * rstd dot / width) * rstd, the factors of x collected
            const A along = rstd * rstd * rstd * dot / static_cast<A>(width);
            if (args.y) {
                T* y = static_cast<T*>(args.y) + r * width;
#pragma omp simd
                for (int64_t c = 0; c < width; ++c) y[c] = narrow<T>(load(x[c]) * rstd);
            }
            if (args.residual_grad) {
                const T* residual = static_cast<const T*>(args.residual_grad) + r * width;
#pragma omp simd
                for (int64_t c = 0; c < width; ++c)
                    dx[c] = narrow<T>(load(dy[c]) * rstd - load(x[c]) * along + load(residual[c]));
            } else {
#pragma omp simd
                for (int64_t c = 0; c < width; ++c)
                    dx[c] = narrow<T>(load(dy[c]) * rstd - load(x[c]) * along);
            }
        });
    });
}

void gated_srms_norm_forward(const GatedSrmsNormForward& args) {
    with_floating(args.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        using A = arithmetic_t<T>;
        const int64_t width = args.width;
        with_gate(args.gate, [&](auto tag) {
            constexpr Activation gate = tag;
            for_each_row(args.rows, width, [&](int64_t r) {
                const T* o = static_cast<const T*>(args.o) + r * width;
                const T* u = static_cast<const T*>(args.u) + r * args.u_stride;
                T* y = static_cast<T*>(args.y) + r * width;
                A sum = 0;
#pragma omp simd reduction(+ : sum)
                for (int64_t c = 0; c < width; ++c) sum += load(o[c]) * load(o[c]);
                const A rstd = reciprocal_rms<T>(sum, width, args.eps);
                static_cast<A*>(args.rstd)[r] = rstd;
#pragma omp simd
                for (int64_t c = 0; c < width; ++c)
                    y[c] = narrow<T>(activation_value<gate>(load(u[c])) * (load(o[c]) * rstd));
            });
        });
    });
}

void gated_srms_norm_backward(const GatedSrmsNormBackward& args) {
    with_floating(args.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        using A = arithmetic_t<T>;
        const int64_t width = args.width;
        with_gate(args.gate, [&](auto tag) {
            constexpr Activation gate = tag;
            for_each_row(args.rows, width, [&](int64_t r) {
                const T* o = static_cast<const T*>(args.o) + r * width;
                const T* u = static_cast<const T*>(args.u) + r * args.u_stride;
                const T* dy = static_cast<const T*>(args.dy) + r * width;
                T* d_o = static_cast<T*>(args.d_o) + r * width;
                T* du = static_cast<T*>(args.du) + r * args.du_stride;
                T* y = args.y ? static_cast<T*>(args.y) + r * width : nullptr;
                const A rstd = static_cast<const A*>(args.rstd)[r];
                A dot = 0;
#pragma omp simd reduction(+ : dot)
                for (int64_t c = 0; c < width; ++c)
                    dot += load(o[c]) * (load(dy[c]) * activation_value<gate>(load(u[c])));
                const A along = rstd * rstd * rstd * dot / static_cast<A>(width);
                const auto element = [&](int64_t c) __attribute__((always_inline)) {
                    const auto g = activation_both<gate>(load(u[c]));
                    const A x = load(o[c]), n = x * rstd, d = load(dy[c]);
                    du[c] = narrow<T>(d * n * g.derivative);
                    d_o[c] = narrow<T>(d * g.value * rstd - x * along);
                    return g.value * n;
                };
                if (y) {
#pragma omp simd
                    for (int64_t c = 0; c < width; ++c) y[c] = narrow<T>(element(c));
                } else {
#pragma omp simd
                    for (int64_t c = 0; c < width; ++c) element(c);
                }
            });
        });
    });
}

}  // namespace levin::kernels::cpu
