// Kernels with one block per row: block-wide sums in a fixed order, and the launch shape.
#pragma once

#include "kernels/cuda/element.cuh"

namespace levin::kernels::cuda {

constexpr int kMaxRowThreads = 512;

template <class A>
__device__ inline A warp_sum(A value) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
    return value;
}
template <class A>
__device__ inline A warp_max(A value) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) value = max(value, __shfl_xor_sync(~0u, value, offset));
    return value;
}

// Sum over the block, the same bits in every thread. blockDim.x is a multiple of 32. May be called again at
// once.
template <class A>
__device__ inline A block_sum(A value) {
    __shared__ A partial[32];
    value = warp_sum(value);
    const int warps = blockDim.x / 32;
    if (warps == 1) return value;
    __syncthreads();  // the last call's readers are done
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
    __syncthreads();
    return warp_sum(threadIdx.x % 32 < warps ? partial[threadIdx.x % 32] : A(0));
}
template <class A>
__device__ inline A block_max(A value) {
    __shared__ A partial[32];
    value = warp_max(value);
    const int warps = blockDim.x / 32;
    if (warps == 1) return value;
    __syncthreads();
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
    __syncthreads();
    return warp_max(threadIdx.x % 32 < warps ? partial[threadIdx.x % 32] : A(-INFINITY));
}

inline int row_threads(int64_t width, int vector) {
    const int64_t wanted = ceil_div(ceil_div(width, vector), 32) * 32;
    return static_cast<int>(wanted < kMaxRowThreads ? wanted : kMaxRowThreads);
}

// Calls body.template apply<N>(column) over a row of `width`, N elements at a time, then one by one: this
// thread's share. Each call sees the same thread at the same columns, so what a thread wrote in one sweep it
// may read in the next.
template <int N, class Body>
__device__ inline void sweep(int64_t width, Body&& body) {
    for (int64_t c = int64_t{threadIdx.x} * N; c < width; c += int64_t{blockDim.x} * N) {
        if (c + N <= width)
            body(c, std::integral_constant<int, N>{});
        else
            for (int64_t tail = c; tail < width; ++tail) body(tail, std::integral_constant<int, 1>{});
    }
}

}  // namespace levin::kernels::cuda
