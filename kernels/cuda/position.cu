// LRPE and RoPE.
#include <cmath>

#include "kernels/backends.h"
#include "kernels/cuda/column_reduce.cuh"
#include "kernels/cuda/rotation.cuh"

namespace levin::kernels::cuda {

namespace {

// One element of a head per thread and step, over columns = heads * head_dim.
template <class T>
struct LrpeForwardOp {
    LrpeForward args;
    template <int N>
    __device__ void apply(int64_t t, int64_t column) const {
        using A = acc_t<T>;
        const int64_t position = args.first_position + t % args.length;
        for (int i = 0; i < N; ++i) {
            const int64_t head = (column + i) / args.head_dim, c = (column + i) % args.head_dim;
            A sine, cosine;
            sine_cosine(static_cast<const A*>(args.theta)[column + i], position, &sine, &cosine);
            const A x = to_acc(static_cast<const T*>(args.x)[t * args.x_stride + column + i]);
            T* y = static_cast<T*>(args.y) + (t * args.heads + head) * 2 * args.head_dim + c;
            y[0] = from_acc<T>(x * cosine);
            y[args.head_dim] = from_acc<T>(x * sine);
        }
    }
};

template <class T>
struct LrpeBackwardOp {
    LrpeBackward args;
    template <int N>
    __device__ void apply(int64_t t, int64_t column) const {
        using A = acc_t<T>;
        const int64_t position = args.first_position + t % args.length;
        for (int i = 0; i < N; ++i) {
            const int64_t head = (column + i) / args.head_dim, c = (column + i) % args.head_dim;
            A sine, cosine;
            sine_cosine(static_cast<const A*>(args.theta)[column + i], position, &sine, &cosine);
            const T* dy = static_cast<const T*>(args.dy) + (t * args.heads + head) * 2 * args.head_dim + c;
            static_cast<T*>(args.dx)[t * args.dx_stride + column + i] =
                from_acc<T>(to_acc(dy[0]) * cosine + to_acc(dy[args.head_dim]) * sine);
        }
    }
};

template <class T>
struct LrpeThetaColumns {
    LrpeBackward args;
    __device__ void add(int64_t t, int64_t column, double (&sum)[1]) const {
        using A = acc_t<T>;
        const int64_t position = args.first_position + t % args.length;
        const int64_t head = column / args.head_dim, c = column % args.head_dim;
        A sine, cosine;
        sine_cosine(static_cast<const A*>(args.theta)[column], position, &sine, &cosine);
        const T* dy = static_cast<const T*>(args.dy) + (t * args.heads + head) * 2 * args.head_dim + c;
        const double x = to_acc(static_cast<const T*>(args.x)[t * args.x_stride + column]);
        sum[0] += static_cast<double>(position) * x *
                  (static_cast<double>(to_acc(dy[args.head_dim])) * cosine -
                   static_cast<double>(to_acc(dy[0])) * sine);
    }
};

// Frequencies come from the host, so that both back ends turn by the same float64 numbers.
constexpr int kMaxHalf = 256;
struct RopeFrequencies {
    double value[kMaxHalf];
};

// One block per token: the angles are the same for all heads.
template <class T>
__global__ void rope_kernel(Rope args, const __grid_constant__ RopeFrequencies frequencies) {
    using A = acc_t<T>;
    const int64_t t = blockIdx.x, position = args.first_position + t % args.length;
    const int64_t half = args.head_dim / 2;
    for (int64_t c = threadIdx.x; c < half; c += blockDim.x) {
        A sine, cosine;
        sine_cosine(frequencies.value[c], position, &sine, &cosine);
        if (args.inverse) sine = -sine;
        for (int64_t head = threadIdx.y; head < args.heads; head += blockDim.y) {
            const T* x = static_cast<const T*>(args.x) + t * args.x_stride + head * args.head_dim + c;
            T* y = static_cast<T*>(args.y) + t * args.y_stride + head * args.head_dim + c;
            const A first = to_acc(x[0]), second = to_acc(x[half]);
            y[0] = from_acc<T>(first * cosine - second * sine);
            y[half] = from_acc<T>(second * cosine + first * sine);
        }
    }
}

}  // namespace

void lrpe_forward(const Stream& stream, const LrpeForward& args) {
    const cudaStream_t s = use(stream);
    by_type(args.dtype, "lrpe_forward", [&](auto tag) {
        using T = typename decltype(tag)::type;
        map_rows<T>(s, args.tokens, args.heads * args.head_dim, false, LrpeForwardOp<T>{args});
    });
}

void lrpe_backward(const Stream& stream, const LrpeBackward& args) {
    const cudaStream_t s = use(stream);
    by_type(args.dtype, "lrpe_backward", [&](auto tag) {
        using T = typename decltype(tag)::type;
        using A = acc_t<T>;
        // theta's gradient first: dx may overwrite x.
        column_reduce<A>(s, args.tokens, args.heads * args.head_dim, LrpeThetaColumns<T>{args},
                         {static_cast<A*>(args.dtheta)}, args.beta);
        map_rows<T>(s, args.tokens, args.heads * args.head_dim, false, LrpeBackwardOp<T>{args});
    });
}

void rope(const Stream& stream, const Rope& args) {
    const cudaStream_t s = use(stream);
    if (args.tokens <= 0) return;
    if (args.head_dim % 2 != 0 || args.head_dim > 2 * kMaxHalf)
        fail_arguments("rope", "head_dim must be even and at most 512", args.head_dim);
    RopeFrequencies frequencies;
    for (int64_t c = 0; c < args.head_dim / 2; ++c)
        frequencies.value[c] =
            std::pow(args.base, -2.0 * static_cast<double>(c) / static_cast<double>(args.head_dim));
    by_type(args.dtype, "rope", [&](auto tag) {
        using T = typename decltype(tag)::type;
        rope_kernel<T><<<static_cast<unsigned>(args.tokens), dim3(32, 8), 0, s>>>(args, frequencies);
        LEVIN_CUDA_LAUNCHED();
    });
}

}  // namespace levin::kernels::cuda
