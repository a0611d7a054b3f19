// The activations as inline functions of one number in arithmetic type (float or double), vectorisable in
// float. Activation::exp means exp(x - max): the caller subtracts the maximum of the group before it calls
// these.
#pragma once

#include <type_traits>

#include "kernels/base/error.h"
#include "kernels/cpu/vector_math.h"
#include "kernels/kernel.h"

namespace levin::kernels::cpu {

template <class T>
struct ValueAndDerivative {
    T value, derivative;
};

// Both at once: they share their exponential, and the compiler drops the one that is not used.
template <Activation A, class T>
LEVIN_INLINE ValueAndDerivative<T> activation_both(T x) {
    if constexpr (A == Activation::none) {
        return {x, T(1)};
    } else if constexpr (A == Activation::silu) {
        const T s = fast_sigmoid(x);
        return {x * s, s + x * s * (T(1) - s)};
    } else if constexpr (A == Activation::relu) {
        return {x < T(0) ? T(0) : x, x > T(0) ? T(1) : T(0)};  // this way round NaN stays NaN
    } else if constexpr (A == Activation::leaky_relu) {
        return {x < T(0) ? T(0.01) * x : x, x > T(0) ? T(1) : T(0.01)};
    } else if constexpr (A == Activation::elu) {
        const T e = fast_expm1(x > T(0) ? T(0) : x);
        return {x > T(0) ? x : e, x > T(0) ? T(1) : e + T(1)};
    } else if constexpr (A == Activation::one_plus_elu) {
        const T e = fast_exp(x > T(0) ? T(0) : x);
        return {x > T(0) ? x + T(1) : e, e};
    } else if constexpr (A == Activation::two_plus_elu) {
        const T e = fast_exp(x > T(0) ? T(0) : x);
        return {x > T(0) ? x + T(2) : e + T(1), e};
    } else if constexpr (A == Activation::gelu) {
        const auto normal = normal_distribution(x);
        return {x * normal.below, normal.below + x * normal.density};
    } else if constexpr (A == Activation::sigmoid) {
        const T s = fast_sigmoid(x);
        return {s, s * (T(1) - s)};
    } else if constexpr (A == Activation::exp) {
        const T e = fast_exp(x);
        return {e, e};
    } else {
        static_assert(A == Activation::sine);
        return {fast_sin(x), fast_cos(x)};
    }
}
template <Activation A, class T>
LEVIN_INLINE T activation_value(T x) {
    return activation_both<A>(x).value;
}
template <Activation A, class T>
LEVIN_INLINE T activation_derivative(T x) {
    return activation_both<A>(x).derivative;
}

// Calls body(tag) with `constexpr Activation A = tag;` inside: the choice is made once, outside of the loops.
template <class Body>
void with_activation(Activation activation, const Body& body) {
    switch (activation) {
#define LEVIN_ACTIVATION(name) \
    case Activation::name:     \
        return body(std::integral_constant<Activation, Activation::name>{})
        LEVIN_ACTIVATION(none);
        LEVIN_ACTIVATION(silu);
        LEVIN_ACTIVATION(relu);
        LEVIN_ACTIVATION(leaky_relu);
        LEVIN_ACTIVATION(elu);
        LEVIN_ACTIVATION(one_plus_elu);
        LEVIN_ACTIVATION(two_plus_elu);
        LEVIN_ACTIVATION(gelu);
        LEVIN_ACTIVATION(sigmoid);
        LEVIN_ACTIVATION(exp);
        LEVIN_ACTIVATION(sine);
#undef LEVIN_ACTIVATION
    }
    fail(Fault::internal, "kernels", "activation number {} is unknown", static_cast<int>(activation));
}

// Calls body(tag) with `using T = typename decltype(tag)::type;` for the floating element types.
template <class T>
struct TypeTag {
    using type = T;
};
template <class Body>
void with_floating(DType dtype, const Body& body) {
    switch (dtype) {
        case DType::f64:
            return body(TypeTag<double>{});
        case DType::f32:
            return body(TypeTag<float>{});
        case DType::bf16:
            return body(TypeTag<bf16>{});
        default:
            fail(Fault::internal, "kernels", "element type {} given, expected f64, f32 or bf16",
                 to_string(dtype));
    }
}

}  // namespace levin::kernels::cpu
