// RMSNorm and LayerNorm with weights. Weight gradients in two stages, see column_reduce.cuh.
#include "kernels/backends.h"
#include "kernels/cuda/column_reduce.cuh"
#include "kernels/cuda/row.cuh"

namespace levin::kernels::cuda {

namespace {

template <class T, int N>
__global__ void __launch_bounds__(kMaxRowThreads) norm_forward_kernel(NormForward args) {
    using A = acc_t<T>;
    const int64_t row = blockIdx.x, width = args.width;
    const T* x = static_cast<const T*>(args.x) + row * width;
    const T* weight = static_cast<const T*>(args.weight);
    const T* bias = static_cast<const T*>(args.bias);
    T* y = static_cast<T*>(args.y) + row * width;
    A mean = 0;
    if (args.kind == WeightedNorm::layer) {
        A sum = 0;
        sweep<N, kVector<T>>(width, [&](int64_t c, auto n) {
            constexpr int kN = decltype(n)::value;
            const auto value = load<kN>(x + c);
#pragma unroll
            for (int i = 0; i < kN; ++i) sum += value[i];
        });
        mean = block_sum(sum) / A(width);
    }
    A squares = 0;  // around the mean: a large mean costs no digits
    sweep<N, kVector<T>>(width, [&](int64_t c, auto n) {
        constexpr int kN = decltype(n)::value;
        const auto value = load<kN>(x + c);
#pragma unroll
        for (int i = 0; i < kN; ++i) squares += (value[i] - mean) * (value[i] - mean);
    });
    const A r = A(1) / sqrt(block_sum(squares) / A(width) + A(args.eps));
    if (threadIdx.x == 0) {
        static_cast<A*>(args.rstd)[row] = r;
        if (args.mean) static_cast<A*>(args.mean)[row] = mean;
    }
    sweep<N, kVector<T>>(width, [&](int64_t c, auto n) {
        constexpr int kN = decltype(n)::value;
        auto value = load<kN>(x + c);
        const auto scale = load<kN>(weight + c);
#pragma unroll
        for (int i = 0; i < kN; ++i) value[i] = (value[i] - mean) * r * scale[i];
        if (bias) {
            const auto shift = load<kN>(bias + c);
#pragma unroll
            for (int i = 0; i < kN; ++i) value[i] += shift[i];
        }
        store<kN>(y + c, value);
    });
}

template <class T, int N>
__global__ void __launch_bounds__(kMaxRowThreads) norm_backward_kernel(NormBackward args) {
    using A = acc_t<T>;
    const int64_t row = blockIdx.x, width = args.width;
    const T* x = static_cast<const T*>(args.x) + row * width;
    const T* dy = static_cast<const T*>(args.dy) + row * width;
    const T* weight = static_cast<const T*>(args.weight);
    T* dx = static_cast<T*>(args.dx) + row * width;
    const bool layer = args.kind == WeightedNorm::layer;
    const A r = static_cast<const A*>(args.rstd)[row],
            mean = layer ? static_cast<const A*>(args.mean)[row] : A(0);
    A dot = 0, sum = 0;
    sweep<N, kVector<T>>(width, [&](int64_t c, auto n) {
        constexpr int kN = decltype(n)::value;
        const auto value = load<kN>(x + c);
        const auto gradient = load<kN>(dy + c);
        const auto scale = load<kN>(weight + c);
#pragma unroll
        for (int i = 0; i < kN; ++i) {
            const A g = gradient[i] * scale[i];
            dot += (value[i] - mean) * r * g;
            sum += g;
        }
    });
    const A mean_dot = block_sum(dot) / A(width);
    const A mean_sum = layer ? block_sum(sum) / A(width) : A(0);
    sweep<N, kVector<T>>(width, [&](int64_t c, auto n) {
        constexpr int kN = decltype(n)::value;
        const auto value = load<kN>(x + c);
        auto gradient = load<kN>(dy + c);
        const auto scale = load<kN>(weight + c);
#pragma unroll
        for (int i = 0; i < kN; ++i)
            gradient[i] = (gradient[i] * scale[i] - mean_sum - (value[i] - mean) * r * mean_dot) * r;
        store<kN>(dx + c, gradient);
    });
}

template <class T>
struct WeightColumns {
    const T *x, *dy;
    const acc_t<T>*mean, *rstd;
    int64_t width;
    __device__ void add(int64_t r, int64_t c, double (&sum)[2]) const {
        const acc_t<T> gradient = to_acc(dy[r * width + c]);
        const acc_t<T> centred = to_acc(x[r * width + c]) - (mean ? mean[r] : acc_t<T>(0));
        sum[0] += gradient * (centred * rstd[r]);
        sum[1] += gradient;
    }
};

}  // namespace

void norm_forward(const Stream& stream, const NormForward& args) {
    const cudaStream_t s = use(stream);
    if (args.rows <= 0) return;
    by_type(args.dtype, "norm_forward", [&](auto tag) {
        using T = typename decltype(tag)::type;
        const bool vector =
            vectorizable<T>({{args.x, args.width}, {args.weight, 0}, {args.bias, 0}, {args.y, args.width}});
        auto* kernel = vector ? norm_forward_kernel<T, kVector<T>> : norm_forward_kernel<T, 1>;
        kernel<<<static_cast<unsigned>(args.rows), row_threads<T>(args.width), 0, s>>>(args);
        LEVIN_CUDA_LAUNCHED();
    });
}

void norm_backward(const Stream& stream, const NormBackward& args) {
    const cudaStream_t s = use(stream);
    by_type(args.dtype, "norm_backward", [&](auto tag) {
        using T = typename decltype(tag)::type;
        using A = acc_t<T>;
        // The columns first: dx may overwrite dy.
        column_reduce<A, 2>(
            s, args.rows, args.width,
            WeightColumns<T>{static_cast<const T*>(args.x), static_cast<const T*>(args.dy),
                             args.kind == WeightedNorm::layer ? static_cast<const A*>(args.mean) : nullptr,
                             static_cast<const A*>(args.rstd), args.width},
            {static_cast<A*>(args.dweight), static_cast<A*>(args.dbias)}, args.beta);
        if (args.rows <= 0) return;
        const bool vector = vectorizable<T>(
            {{args.x, args.width}, {args.weight, 0}, {args.dy, args.width}, {args.dx, args.width}});
        auto* kernel = vector ? norm_backward_kernel<T, kVector<T>> : norm_backward_kernel<T, 1>;
        kernel<<<static_cast<unsigned>(args.rows), row_threads<T>(args.width), 0, s>>>(args);
        LEVIN_CUDA_LAUNCHED();
    });
}

}  // namespace levin::kernels::cuda
