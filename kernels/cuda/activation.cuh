// Activations and their derivatives on the device, in the accumulator type. `shift` is the maximum that
// Activation::exp subtracts; the others ignore it.
#pragma once

#include "kernels/kernel.h"

namespace levin::kernels::cuda {

template <class A>
__device__ inline A sigmoid_of(A x) {
    return A(1) / (A(1) + exp(-x));
}

template <class A>
__device__ inline A activate(Activation activation, A x, A shift = A(0)) {
    switch (activation) {
        case Activation::none:
            return x;
        case Activation::silu:
            return x * sigmoid_of(x);
        case Activation::relu:
            return x < A(0) ? A(0) : x;  // this way round NaN stays NaN
        case Activation::leaky_relu:
            return x < A(0) ? A(0.01) * x : x;
        case Activation::elu:
            return x > A(0) ? x : expm1(x);
        case Activation::one_plus_elu:
            return x > A(0) ? A(1) + x : exp(x);
        case Activation::two_plus_elu:
            return x > A(0) ? A(2) + x : A(1) + exp(x);
        case Activation::gelu:
            return A(0.5) * x * erfc(x * A(-0.70710678118654752440));  // no cancellation far below zero
        case Activation::sigmoid:
            return sigmoid_of(x);
        case Activation::exp:
            return exp(x - shift);
        case Activation::sine:
            return sin(x);
    }
    return x;
}

// d activate / d x; the shift counts as a constant.
template <class A>
__device__ inline A derivative(Activation activation, A x, A shift = A(0)) {
    switch (activation) {
        case Activation::none:
            return A(1);
        case Activation::silu: {
            const A s = sigmoid_of(x);
            return s * (A(1) + x * (A(1) - s));
        }
        case Activation::relu:
            return x > A(0) ? A(1) : A(0);
        case Activation::leaky_relu:
            return x > A(0) ? A(1) : A(0.01);
        case Activation::elu:
        case Activation::one_plus_elu:
        case Activation::two_plus_elu:
            return x > A(0) ? A(1) : exp(x);
        case Activation::gelu:
            return A(0.5) * erfc(x * A(-0.70710678118654752440)) +
                   x * A(0.39894228040143267794) * exp(A(-0.5) * x * x);
        case Activation::sigmoid: {
            const A s = sigmoid_of(x);
            return s * (A(1) - s);
        }
        case Activation::exp:
            return exp(x - shift);
        case Activation::sine:
            return cos(x);
    }
    return A(1);
}

// An activation as a kernel's template argument. None is a type of its own, so that the models without one do
// not carry the registers of all the others.
struct NoActivation {
    template <class A>
    __device__ A value(A x) const {
        return x;
    }
    template <class A>
    __device__ A slope(A) const {
        return A(1);
    }
};
// What most models have, forward.
struct Silu {
    template <class A>
    __device__ A value(A x) const {
        return x * sigmoid_of(x);
    }
};
struct AnyActivation {
    Activation activation;
    template <class A>
    __device__ A value(A x) const {
        return activate(activation, x);
    }
    template <class A>
    __device__ A slope(A x) const {
        return derivative(activation, x);
    }
};
template <class Body>
void by_activation(Activation activation, const Body& body) {
    if (activation == Activation::none)
        body(NoActivation{});
    else
        body(AnyActivation{activation});
}

}  // namespace levin::kernels::cuda
