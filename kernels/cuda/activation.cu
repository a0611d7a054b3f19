// Activations and gated products.
#include "kernels/backends.h"
#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/element.cuh"

namespace levin::kernels::cuda {

namespace {

template <class T>
struct ForwardOp {
    Activation activation;
    const T* x;
    int64_t x_stride;
    T* y;
    int64_t y_stride;
    template <int N>
    __device__ void apply(int64_t r, int64_t c) const {
        auto value = load<N>(x + r * x_stride + c);
#pragma unroll
        for (int i = 0; i < N; ++i) value[i] = activate(activation, value[i]);
        store<N>(y + r * y_stride + c, value);
    }
};

template <class T>
struct BackwardOp {
    Activation activation;
    const T* x;
    int64_t x_stride;
    const T* dy;
    int64_t dy_stride;
    T* dx;
    int64_t dx_stride;
    template <int N>
    __device__ void apply(int64_t r, int64_t c) const {
        auto gradient = load<N>(dy + r * dy_stride + c);
        const auto value = load<N>(x + r * x_stride + c);
#pragma unroll
        for (int i = 0; i < N; ++i) gradient[i] *= derivative(activation, value[i]);
        store<N>(dx + r * dx_stride + c, gradient);
    }
};

// exp(x - max over the group), one warp per group; with dy the gradient dy * exp(x - max).
template <class T>
__global__ void exp_kernel(int64_t groups, int64_t groups_per_row, int64_t group, const T* x,
                           int64_t x_stride, const T* dy, int64_t dy_stride, T* out, int64_t out_stride) {
    using A = acc_t<T>;
    const int64_t index = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
    if (index >= groups) return;
    const int64_t row = index / groups_per_row, column = index % groups_per_row * group;
    const T* from = x + row * x_stride + column;
    A top = -INFINITY;
    for (int64_t c = threadIdx.x; c < group; c += 32) top = max(top, to_acc(from[c]));
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) top = max(top, __shfl_xor_sync(~0u, top, offset));
    for (int64_t c = threadIdx.x; c < group; c += 32) {
        A value = exp(to_acc(from[c]) - top);
        if (dy) value *= to_acc(dy[row * dy_stride + column + c]);
        out[row * out_stride + column + c] = from_acc<T>(value);
    }
}

template <class T>
void launch_exp(cudaStream_t stream, int64_t rows, int64_t columns, int64_t group, const void* x,
                int64_t x_stride, const void* dy, int64_t dy_stride, void* out, int64_t out_stride) {
    if (rows <= 0 || columns <= 0) return;
    if (group <= 0 || columns % group != 0)
        fail_arguments("activation", "columns must be a multiple of the group", group);
    const int64_t per_row = columns / group, groups = rows * per_row;
    exp_kernel<T><<<static_cast<unsigned>(ceil_div(groups, 8)), dim3(32, 8), 0, stream>>>(
        groups, per_row, group, static_cast<const T*>(x), x_stride, static_cast<const T*>(dy), dy_stride,
        static_cast<T*>(out), out_stride);
    LEVIN_CUDA_LAUNCHED();
}

template <class T, class Function>
struct GluForwardOp {
    Function function;
    const T* a;
    int64_t a_stride;
    const T* b;
    int64_t b_stride;
    T* y;
    int64_t columns;
    template <int N>
    __device__ void apply(int64_t r, int64_t c) const {
        auto value = load<N>(a + r * a_stride + c);
        const auto factor = load<N>(b + r * b_stride + c);
#pragma unroll
        for (int i = 0; i < N; ++i) value[i] = function.value(value[i]) * factor[i];
        store<N>(y + r * columns + c, value);
    }
};

template <class T, class Function>
struct GluBackwardOp {
    Function function;
    const T* a;
    int64_t a_stride;
    const T* b;
    int64_t b_stride;
    const T* dy;
    T* da;
    int64_t da_stride;
    T* db;
    int64_t db_stride;
    T* y;
    int64_t columns;
    template <int N>
    __device__ void apply(int64_t r, int64_t c) const {
        const auto x = load<N>(a + r * a_stride + c);
        const auto factor = load<N>(b + r * b_stride + c);
        const auto gradient = load<N>(dy + r * columns + c);
        Pack<acc_t<T>, N> left, right, product;
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const acc_t<T> active = function.value(x[i]);
            left[i] = gradient[i] * factor[i] * function.slope(x[i]);
            right[i] = gradient[i] * active;
            product[i] = active * factor[i];
        }
        store<N>(da + r * da_stride + c, left);
        store<N>(db + r * db_stride + c, right);
        if (y) store<N>(y + r * columns + c, product);
    }
};

void refuse_exp(Activation activation, const char* kernel) {
    // The product has no head width to take a maximum over.
    if (activation == Activation::exp)
        fail_arguments(kernel, "activation exp needs a group", static_cast<int64_t>(activation));
}

}  // namespace

void activation_forward(const Stream& stream, const ActivationForward& args) {
    const cudaStream_t s = use(stream);
    by_type(args.dtype, "activation_forward", [&](auto tag) {
        using T = typename decltype(tag)::type;
        if (args.activation == Activation::exp)
            return launch_exp<T>(s, args.rows, args.columns, args.group, args.x, args.x_stride, nullptr, 0,
                                 args.y, args.y_stride);
        map_rows<T>(s, args.rows, args.columns,
                    vectorizable<T>({{args.x, args.x_stride}, {args.y, args.y_stride}}),
                    ForwardOp<T>{args.activation, static_cast<const T*>(args.x), args.x_stride,
                                 static_cast<T*>(args.y), args.y_stride});
    });
}

void activation_backward(const Stream& stream, const ActivationBackward& args) {
    const cudaStream_t s = use(stream);
    by_type(args.dtype, "activation_backward", [&](auto tag) {
        using T = typename decltype(tag)::type;
        if (args.activation == Activation::exp)
            return launch_exp<T>(s, args.rows, args.columns, args.group, args.x, args.x_stride, args.dy,
                                 args.dy_stride, args.dx, args.dx_stride);
        map_rows<T>(
            s, args.rows, args.columns,
            vectorizable<T>({{args.x, args.x_stride}, {args.dy, args.dy_stride}, {args.dx, args.dx_stride}}),
            BackwardOp<T>{args.activation, static_cast<const T*>(args.x), args.x_stride,
                          static_cast<const T*>(args.dy), args.dy_stride, static_cast<T*>(args.dx),
                          args.dx_stride});
    });
}

void glu_forward(const Stream& stream, const GluForward& args) {
    const cudaStream_t s = use(stream);
    refuse_exp(args.activation, "glu_forward");
    by_type(args.dtype, "glu_forward", [&](auto tag) {
        using T = typename decltype(tag)::type;
        const bool vector =
            vectorizable<T>({{args.a, args.a_stride}, {args.b, args.b_stride}, {args.y, args.columns}});
        by_activation(args.activation, [&](auto function) {
            map_rows<T>(
                s, args.rows, args.columns, vector,
                GluForwardOp<T, decltype(function)>{function, static_cast<const T*>(args.a), args.a_stride,
                                                    static_cast<const T*>(args.b), args.b_stride,
                                                    static_cast<T*>(args.y), args.columns});
        });
    });
}

void glu_backward(const Stream& stream, const GluBackward& args) {
    const cudaStream_t s = use(stream);
    refuse_exp(args.activation, "glu_backward");
    by_type(args.dtype, "glu_backward", [&](auto tag) {
        using T = typename decltype(tag)::type;
        const bool vector = vectorizable<T>({{args.a, args.a_stride},
                                             {args.b, args.b_stride},
                                             {args.dy, args.columns},
                                             {args.da, args.da_stride},
                                             {args.db, args.db_stride},
                                             {args.y, args.columns}});
        by_activation(args.activation, [&](auto function) {
            map_rows<T>(
                s, args.rows, args.columns, vector,
                GluBackwardOp<T, decltype(function)>{
                    function, static_cast<const T*>(args.a), args.a_stride, static_cast<const T*>(args.b),
                    args.b_stride, static_cast<const T*>(args.dy), static_cast<T*>(args.da), args.da_stride,
                    static_cast<T*>(args.db), args.db_stride, static_cast<T*>(args.y), args.columns});
        });
    });
}

}  // namespace levin::kernels::cuda
