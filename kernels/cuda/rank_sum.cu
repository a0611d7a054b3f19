#include <algorithm>

#include "kernels/cuda/check.h"
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/rank_sum.h"

namespace levin::kernels::cuda {

namespace {

// It runs in the gap between two kernels, and what comes next waits for all its blocks: short and wide takes
// the least from it. 64 KiB on their way to a multiprocessor hide the memory's latency.
constexpr int kThreads = 512, kBlocks = 2, kUnroll = 2;

template <class T>
struct Parts {
    const T* of[kMaxSummedRanks];
};

template <class T, int N>
__global__ void __launch_bounds__(kThreads, kBlocks)
    rank_sum_kernel(const __grid_constant__ Parts<T> parts, int ranks, T* out, int64_t count) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads * N;
    for (int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * N; first < count;
         first += step * kUnroll) {
        Raw<T, N> one[kUnroll], other[kUnroll];
        const auto read = [&](const T* part, Raw<T, N>(&values)[kUnroll]) {
#pragma unroll
            for (int u = 0; u < kUnroll; ++u)
                if (first + u * step < count)
                    values[u] = *reinterpret_cast<const Raw<T, N>*>(part + first + u * step);
        };
        read(parts.of[0], one);
        read(parts.of[1], other);  // asked for before the first is there
        Pack<acc_t<T>, N> sum[kUnroll];
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) sum[u] = unpack(one[u]);
        for (int r = 1;;) {
#pragma unroll
            for (int u = 0; u < kUnroll; ++u) {
                const Pack<acc_t<T>, N> more = unpack(other[u]);
#pragma unroll
                for (int i = 0; i < N; ++i) sum[u][i] += more[i];
            }
            if (++r == ranks) break;
            read(parts.of[r], other);
        }
#pragma unroll
        for (int u = 0; u < kUnroll; ++u)
            if (first + u * step < count) store<N>(out + first + u * step, sum[u]);
    }
}

}  // namespace

void sum_in_rank_order(cudaStream_t stream, const void* const* parts, int ranks, void* out, int64_t count,
                       DType dtype) {
    if (count <= 0) return;
    if (ranks < 2 || ranks > kMaxSummedRanks) fail_arguments("rank_sum", "takes 2 to 8 parts", ranks);
    int device = 0;
    LEVIN_CUDA_CHECK(cudaGetDevice(&device));
    by_type(dtype, "rank_sum", [&](auto tag) {
        using T = typename decltype(tag)::type;
        Parts<T> typed{};
        bool vector = vectorizable<T>({{out, count}});
        for (int r = 0; r < ranks; ++r) {
            typed.of[r] = static_cast<const T*>(parts[r]);
            vector = vector && vectorizable<T>({{parts[r], count}});
        }
        const int64_t wide = vector ? kVector<T> : 1;
        const auto blocks = static_cast<unsigned>(
            std::min<int64_t>(kBlocks * multiprocessors(device), ceil_div(count, kThreads * wide)));
        if (vector)
            rank_sum_kernel<T, kVector<T>>
                <<<blocks, kThreads, 0, stream>>>(typed, ranks, static_cast<T*>(out), count);
        else
            rank_sum_kernel<T, 1><<<blocks, kThreads, 0, stream>>>(typed, ranks, static_cast<T*>(out), count);
        LEVIN_CUDA_LAUNCHED();
    });
}

}  // namespace levin::kernels::cuda
