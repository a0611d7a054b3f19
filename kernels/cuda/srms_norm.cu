// SimpleRMSNorm, with the residual sum before it or the gate after it. One block per row. A row that is one
// vector a thread (a multiple of 256 up to 4096 columns in bf16) stays in registers between the two sweeps,
// and all of it is on its way at once; a longer one is read a second time, from the cache.
#include "kernels/backends.h"
#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/row.cuh"

namespace levin::kernels::cuda {

namespace {

template <class T, int N>
__global__ void __launch_bounds__(kMaxRowThreads)
    forward_kernel(int64_t width, double eps, const T* x, int64_t x_stride, const T* branch, T* h, T* y,
                   acc_t<T>* rstd) {
    using A = acc_t<T>;
    const int64_t row = blockIdx.x;
    const T* from = x + row * x_stride;
    const bool kept = one_vector<N, T>(width);
    Kept<T> sum;
    A squares = 0;
    sweep<N, kVector<T>>(width, [&](int64_t c, auto n) {
        constexpr int kN = decltype(n)::value;
        auto value = sum.template first<kN>(from + c);
        if (branch) {
            const auto other = load<kN>(branch + row * width + c);
#pragma unroll
            for (int i = 0; i < kN; ++i) value[i] = to_acc(from_acc<T>(value[i] + other[i]));
            store<kN>(h + row * width + c, value);
            sum.template set<kN>(value);
        }
#pragma unroll
        for (int i = 0; i < kN; ++i) squares += value[i] * value[i];
    });
    const A r = A(1) / sqrt(block_sum(squares) / A(width) + A(eps));
    if (threadIdx.x == 0) rstd[row] = r;
    if (!y) return;
    const T* again = branch ? h + row * width : from;
    sweep<N, kVector<T>>(width, [&](int64_t c, auto n) {
        constexpr int kN = decltype(n)::value;
        auto value = sum.template again<kN>(kept, again + c);
#pragma unroll
        for (int i = 0; i < kN; ++i) value[i] *= r;
        store<kN>(y + row * width + c, value);
    });
}

template <class T, int N>
__global__ void __launch_bounds__(kMaxRowThreads)
    backward_kernel(int64_t width, const T* x, int64_t x_stride, const acc_t<T>* rstd, const T* dy,
                    const T* residual, T* dx, int64_t dx_stride, T* y) {
    using A = acc_t<T>;
    const int64_t row = blockIdx.x;
    const A r = rstd[row];
    const T* from = x + row * x_stride;
    const bool kept = one_vector<N, T>(width);
    Kept<T> values, gradients, pasts;
    A dot = 0;
    sweep<N, kVector<T>>(width, [&](int64_t c, auto n) {
        constexpr int kN = decltype(n)::value;
        const auto value = values.template first<kN>(from + c);
        const auto gradient = gradients.template first<kN>(dy + row * width + c);
        if (kept && residual) pasts.template first<kN>(residual + row * width + c);  // on its way early
#pragma unroll
        for (int i = 0; i < kN; ++i) dot += value[i] * r * gradient[i];
    });
    const A mean = block_sum(dot) / A(width);
    sweep<N, kVector<T>>(width, [&](int64_t c, auto n) {
        constexpr int kN = decltype(n)::value;
        const auto value = values.template again<kN>(kept, from + c);
        auto gradient = gradients.template again<kN>(kept, dy + row * width + c);
        Pack<A, kN> normed;
#pragma unroll
        for (int i = 0; i < kN; ++i) {
            normed[i] = value[i] * r;
            gradient[i] = (gradient[i] - normed[i] * mean) * r;
        }
        if (y) store<kN>(y + row * width + c, normed);
        if (residual) {
            const auto past = pasts.template again<kN>(kept, residual + row * width + c);
#pragma unroll
            for (int i = 0; i < kN; ++i) gradient[i] += past[i];
        }
        store<kN>(dx + row * dx_stride + c, gradient);
    });
}

template <class T, int N, class Gate>
__global__ void __launch_bounds__(kMaxRowThreads)
    gated_forward_kernel(int64_t width, double eps, Gate gate, const T* o, const T* u, int64_t u_stride, T* y,
                         acc_t<T>* rstd) {
    using A = acc_t<T>;
    const int64_t row = blockIdx.x;
    const bool kept = one_vector<N, T>(width);
    Kept<T> values, opens;
    A squares = 0;
    sweep<N, kVector<T>>(width, [&](int64_t c, auto n) {
        constexpr int kN = decltype(n)::value;
        const auto value = values.template first<kN>(o + row * width + c);
        if (kept) opens.template first<kN>(u + row * u_stride + c);  // on its way early
#pragma unroll
        for (int i = 0; i < kN; ++i) squares += value[i] * value[i];
    });
    const A r = A(1) / sqrt(block_sum(squares) / A(width) + A(eps));
    if (threadIdx.x == 0) rstd[row] = r;
    sweep<N, kVector<T>>(width, [&](int64_t c, auto n) {
        constexpr int kN = decltype(n)::value;
        auto value = values.template again<kN>(kept, o + row * width + c);
        const auto open = opens.template again<kN>(kept, u + row * u_stride + c);
#pragma unroll
        for (int i = 0; i < kN; ++i) value[i] = gate.value(open[i]) * (value[i] * r);
        store<kN>(y + row * width + c, value);
    });
}

template <class T, int N, class Gate>
__global__ void __launch_bounds__(kMaxRowThreads)
    gated_backward_kernel(int64_t width, Gate gate, const T* o, const T* u, int64_t u_stride,
                          const acc_t<T>* rstd, const T* dy, T* d_o, T* du, int64_t du_stride, T* y) {
    using A = acc_t<T>;
    const int64_t row = blockIdx.x;
    const A r = rstd[row];
    const bool kept = one_vector<N, T>(width);
    Kept<T> values, opens, gradients;
    A dot = 0;
    sweep<N, kVector<T>>(width, [&](int64_t c, auto n) {
        constexpr int kN = decltype(n)::value;
        const auto value = values.template first<kN>(o + row * width + c);
        const auto open = opens.template first<kN>(u + row * u_stride + c);
        const auto gradient = gradients.template first<kN>(dy + row * width + c);
#pragma unroll
        for (int i = 0; i < kN; ++i) dot += value[i] * r * (gradient[i] * gate.value(open[i]));
    });
    const A mean = block_sum(dot) / A(width);
    sweep<N, kVector<T>>(width, [&](int64_t c, auto n) {
        constexpr int kN = decltype(n)::value;
        const auto value = values.template again<kN>(kept, o + row * width + c);
        const auto open = opens.template again<kN>(kept, u + row * u_stride + c);
        const auto gradient = gradients.template again<kN>(kept, dy + row * width + c);
        Pack<A, kN> to_o, to_u, product;
#pragma unroll
        for (int i = 0; i < kN; ++i) {
            const A normed = value[i] * r, factor = gate.value(open[i]);
            to_o[i] = (gradient[i] * factor - normed * mean) * r;
            to_u[i] = gradient[i] * normed * gate.slope(open[i]);
            product[i] = factor * normed;
        }
        store<kN>(d_o + row * width + c, to_o);
        store<kN>(du + row * du_stride + c, to_u);
        if (y) store<kN>(y + row * width + c, product);
    });
}

}  // namespace

void srms_norm_forward(const Stream& stream, const SrmsNormForward& args) {
    const cudaStream_t s = use(stream);
    if (args.rows <= 0) return;
    by_type(args.dtype, "srms_norm_forward", [&](auto tag) {
        using T = typename decltype(tag)::type;
        const bool vector = vectorizable<T>(
            {{args.x, args.x_stride}, {args.branch, args.width}, {args.h, args.width}, {args.y, args.width}});
        auto* kernel = vector ? forward_kernel<T, kVector<T>> : forward_kernel<T, 1>;
        kernel<<<static_cast<unsigned>(args.rows), row_threads<T>(args.width), 0, s>>>(
            args.width, args.eps, static_cast<const T*>(args.x), args.x_stride,
            static_cast<const T*>(args.branch), static_cast<T*>(args.h), static_cast<T*>(args.y),
            static_cast<acc_t<T>*>(args.rstd));
        LEVIN_CUDA_LAUNCHED();
    });
}

void srms_norm_backward(const Stream& stream, const SrmsNormBackward& args) {
    const cudaStream_t s = use(stream);
    if (args.rows <= 0) return;
    by_type(args.dtype, "srms_norm_backward", [&](auto tag) {
        using T = typename decltype(tag)::type;
        const bool vector = vectorizable<T>({{args.x, args.x_stride},
                                             {args.dy, args.width},
                                             {args.residual_grad, args.width},
                                             {args.dx, args.dx_stride},
                                             {args.y, args.width}});
        auto* kernel = vector ? backward_kernel<T, kVector<T>> : backward_kernel<T, 1>;
        kernel<<<static_cast<unsigned>(args.rows), row_threads<T>(args.width), 0, s>>>(
            args.width, static_cast<const T*>(args.x), args.x_stride, static_cast<const acc_t<T>*>(args.rstd),
            static_cast<const T*>(args.dy), static_cast<const T*>(args.residual_grad),
            static_cast<T*>(args.dx), args.dx_stride, static_cast<T*>(args.y));
        LEVIN_CUDA_LAUNCHED();
    });
}

void gated_srms_norm_forward(const Stream& stream, const GatedSrmsNormForward& args) {
    const cudaStream_t s = use(stream);
    if (args.rows <= 0) return;
    by_type(args.dtype, "gated_srms_norm_forward", [&](auto tag) {
        using T = typename decltype(tag)::type;
        const bool vector =
            vectorizable<T>({{args.o, args.width}, {args.u, args.u_stride}, {args.y, args.width}});
        by_activation(args.gate, [&](auto gate) {
            using Gate = decltype(gate);
            auto* kernel =
                vector ? gated_forward_kernel<T, kVector<T>, Gate> : gated_forward_kernel<T, 1, Gate>;
            kernel<<<static_cast<unsigned>(args.rows), row_threads<T>(args.width), 0, s>>>(
                args.width, args.eps, gate, static_cast<const T*>(args.o), static_cast<const T*>(args.u),
                args.u_stride, static_cast<T*>(args.y), static_cast<acc_t<T>*>(args.rstd));
            LEVIN_CUDA_LAUNCHED();
        });
    });
}

void gated_srms_norm_backward(const Stream& stream, const GatedSrmsNormBackward& args) {
    const cudaStream_t s = use(stream);
    if (args.rows <= 0) return;
    by_type(args.dtype, "gated_srms_norm_backward", [&](auto tag) {
        using T = typename decltype(tag)::type;
        const bool vector = vectorizable<T>({{args.o, args.width},
                                             {args.u, args.u_stride},
                                             {args.dy, args.width},
                                             {args.d_o, args.width},
                                             {args.du, args.du_stride},
                                             {args.y, args.width}});
        by_activation(args.gate, [&](auto gate) {
            using Gate = decltype(gate);
            auto* kernel =
                vector ? gated_backward_kernel<T, kVector<T>, Gate> : gated_backward_kernel<T, 1, Gate>;
            kernel<<<static_cast<unsigned>(args.rows), row_threads<T>(args.width), 0, s>>>(
                args.width, gate, static_cast<const T*>(args.o), static_cast<const T*>(args.u), args.u_stride,
                static_cast<const acc_t<T>*>(args.rstd), static_cast<const T*>(args.dy),
                static_cast<T*>(args.d_o), static_cast<T*>(args.du), args.du_stride, static_cast<T*>(args.y));
            LEVIN_CUDA_LAUNCHED();
        });
    });
}

}  // namespace levin::kernels::cuda
