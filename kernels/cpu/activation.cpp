// Activations and gated products over rows.
#include "kernels/cpu/activation.h"

#include "kernels/backends.h"
#include "kernels/cpu/loops.h"

namespace levin::kernels::cpu {
namespace {

template <class T>
arithmetic_t<T> maximum(const T* x, int64_t count) {
    arithmetic_t<T> result = load(x[0]);
#pragma omp simd reduction(max : result)
    for (int64_t c = 0; c < count; ++c) result = std::max(result, load(x[c]));
    return result;
}

// Calls body(first column, end, what to subtract) for each group that shares a maximum; one group of
// everything, with nothing to subtract, for all activations but exp.
template <Activation A, class T, class Body>
void for_each_group(const T* x, int64_t columns, int64_t group, const Body& body) {
    if constexpr (A == Activation::exp) {
        for (int64_t c = 0; c < columns; c += group) body(c, c + group, maximum(x + c, group));
    } else {
        (void)x;
        (void)group;
        body(int64_t{0}, columns, arithmetic_t<T>(0));
    }
}

void check_group(Activation activation, int64_t columns, int64_t group) {
    if (activation == Activation::exp)
        LEVIN_CHECK(group > 0 && columns % group == 0, "activation",
                    "{} columns do not divide into groups of {} for the maximum of exp", columns, group);
}
void check_glu(Activation activation) {
    LEVIN_CHECK(activation != Activation::exp, "activation",
                "exp needs a group to take its maximum over: not for a GLU");
}

}  // namespace

void activation_forward(const ActivationForward& args) {
    check_group(args.activation, args.columns, args.group);
    with_floating(args.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        with_activation(args.activation, [&](auto tag) {
            constexpr Activation A = tag;
            for_each_row(args.rows, args.columns, [&](int64_t r) {
                const T* x = static_cast<const T*>(args.x) + r * args.x_stride;
                T* y = static_cast<T*>(args.y) + r * args.y_stride;
                for_each_group<A>(x, args.columns, args.group, [&](int64_t begin, int64_t end, auto shift) {
#pragma omp simd
                    for (int64_t c = begin; c < end; ++c)
                        y[c] = narrow<T>(activation_value<A>(load(x[c]) - shift));
                });
            });
        });
    });
}

void activation_backward(const ActivationBackward& args) {
    check_group(args.activation, args.columns, args.group);
    with_floating(args.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        with_activation(args.activation, [&](auto tag) {
            constexpr Activation A = tag;
            for_each_row(args.rows, args.columns, [&](int64_t r) {
                const T* x = static_cast<const T*>(args.x) + r * args.x_stride;
                const T* dy = static_cast<const T*>(args.dy) + r * args.dy_stride;
                T* dx = static_cast<T*>(args.dx) + r * args.dx_stride;
                for_each_group<A>(x, args.columns, args.group, [&](int64_t begin, int64_t end, auto shift) {
#pragma omp simd
                    for (int64_t c = begin; c < end; ++c)
                        dx[c] = narrow<T>(load(dy[c]) * activation_derivative<A>(load(x[c]) - shift));
                });
            });
        });
    });
}

void glu_forward(const GluForward& args) {
    check_glu(args.activation);
    with_floating(args.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        with_activation(args.activation, [&](auto tag) {
            constexpr Activation A = tag;
            for_each_row(args.rows, args.columns, [&](int64_t r) {
                const T* a = static_cast<const T*>(args.a) + r * args.a_stride;
                const T* b = static_cast<const T*>(args.b) + r * args.b_stride;
                T* y = static_cast<T*>(args.y) + r * args.columns;
#pragma omp simd
                for (int64_t c = 0; c < args.columns; ++c)
                    y[c] = narrow<T>(activation_value<A>(load(a[c])) * load(b[c]));
            });
        });
    });
}

void glu_backward(const GluBackward& args) {
    check_glu(args.activation);
    with_floating(args.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        with_activation(args.activation, [&](auto tag) {
            constexpr Activation A = tag;
            for_each_row(args.rows, args.columns, [&](int64_t r) {
                const T* a = static_cast<const T*>(args.a) + r * args.a_stride;
                const T* b = static_cast<const T*>(args.b) + r * args.b_stride;
                const T* dy = static_cast<const T*>(args.dy) + r * args.columns;
                T* da = static_cast<T*>(args.da) + r * args.da_stride;
                T* db = static_cast<T*>(args.db) + r * args.db_stride;
                T* y = args.y ? static_cast<T*>(args.y) + r * args.columns : nullptr;
                const auto element = [&](int64_t c) __attribute__((always_inline)) {
                    const auto g = activation_both<A>(load(a[c]));
                    const auto gate = load(b[c]), d = load(dy[c]);
                    da[c] = narrow<T>(d * gate * g.derivative);
                    db[c] = narrow<T>(d * g.value);
                    return g.value * gate;
                };
                if (y) {
#pragma omp simd
                    for (int64_t c = 0; c < args.columns; ++c) y[c] = narrow<T>(element(c));
                } else {
#pragma omp simd
                    for (int64_t c = 0; c < args.columns; ++c) element(c);
                }
            });
        });
    });
}

}  // namespace levin::kernels::cpu
