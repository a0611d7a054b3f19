// Softmax cross-entropy, one block per row: one sweep for maximum and sum (online), one that writes the
// gradient. The rows in flight fit the L2 cache, so memory sees one read and one write.
#include "kernels/backends.h"
#include "kernels/cuda/row.cuh"

namespace levin::kernels::cuda {

namespace {

constexpr int kThreads = 1024;  // two rows per multiprocessor: their second reading hits the L2 cache

// exp that costs one instruction where the logits have eight bits anyway.
template <class T>
__device__ acc_t<T> exponential(acc_t<T> x) {
    return exp(x);
}
template <>
__device__ float exponential<Bf16>(float x) {
    return __expf(x);
}

template <class T, int N>
__global__ void __launch_bounds__(kThreads) cross_entropy_kernel(CrossEntropy args) {
    using A = acc_t<T>;
    const int64_t row = blockIdx.x, vocab = args.vocab;
    T* logits = static_cast<T*>(args.logits) + row * args.stride;
    const int64_t target = args.targets[row];
    A* loss = static_cast<A*>(args.loss);
    if (target < 0) {
        if (threadIdx.x == 0) loss[row] = A(0);
        if (args.gradient_scale == 0) return;
        sweep<N, kVector<T>>(args.stride, [&](int64_t c, auto n) {
            constexpr int kN = decltype(n)::value;
            store<kN>(logits + c, Pack<A, kN>{});
        });
        return;
    }
    A top = -INFINITY, sum = 0;
    sweep<N, kVector<T>>(vocab, [&](int64_t c, auto n) {
        constexpr int kN = decltype(n)::value;
        const auto z = load<kN>(logits + c);
        A most = z[0];
#pragma unroll
        for (int i = 1; i < kN; ++i) most = max(most, z[i]);
        if (most > top) {
            sum *= exp(top - most);
            top = most;
        }
        if (top > -INFINITY)
#pragma unroll
            for (int i = 0; i < kN; ++i) sum += exponential<T>(z[i] - top);
        else
#pragma unroll
            for (int i = 0; i < kN; ++i) sum += z[i] != z[i] ? z[i] : A(0);  // NaN is not hidden
    });
    const A most = block_max(top);
    const A total = block_sum(top > -INFINITY ? sum * exp(top - most) : sum);
    const A log_total = log(total), lse = most + log_total;
    const A at_target = to_acc(logits[target]);
    __syncthreads();  // everybody has read the target before the gradient overwrites it
    const A z_loss = A(args.z_loss);
    if (threadIdx.x == 0) loss[row] = log_total - (at_target - most) + z_loss * lse * lse;
    if (args.gradient_scale == 0) return;
    const A pull = A(1) + A(2) * z_loss * lse, scale = A(args.gradient_scale), factor = scale * pull / total;
    sweep<N, kVector<T>>(args.stride, [&](int64_t c, auto n) {
        constexpr int kN = decltype(n)::value;
        auto z = load<kN>(logits + c);
        const auto raw = z;
#pragma unroll
        for (int i = 0; i < kN; ++i)
            z[i] = factor * exponential<T>(z[i] - most);  // exact shift, also far from zero
        const int64_t place = target - c, inside = vocab - c;
        if (place >= 0 && place < kN) {
            // p - 1 cancels where the model is sure; expm1 does not.
#pragma unroll
            for (int i = 0; i < kN; ++i)
                if (i == place) {
                    const A log_p = raw[i] - most - log_total;
                    z[i] = scale * (expm1(log_p) + (pull - A(1)) * exp(log_p));
                }
        }
        if (inside < kN)
#pragma unroll
            for (int i = 0; i < kN; ++i)
                if (i >= inside) z[i] = A(0);
        store<kN>(logits + c, z);
    });
}

}  // namespace

void cross_entropy(const Stream& stream, const CrossEntropy& args) {
    const cudaStream_t s = use(stream);
    if (args.rows <= 0) return;
    by_type(args.dtype, "cross_entropy", [&](auto tag) {
        using T = typename decltype(tag)::type;
        const bool vector = vectorizable<T>({{args.logits, args.stride}});
        auto* kernel = vector ? cross_entropy_kernel<T, kVector<T>> : cross_entropy_kernel<T, 1>;
        kernel<<<static_cast<unsigned>(args.rows), kThreads, 0, s>>>(args);
        LEVIN_CUDA_LAUNCHED();
    });
}

}  // namespace levin::kernels::cuda
