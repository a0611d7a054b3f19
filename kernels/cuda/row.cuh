// Kernels with one block per row: block-wide sums in a fixed order, and the launch shape.
#pragma once

#include <type_traits>

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

template <class T>
int row_threads(int64_t width) {
    const int64_t wanted = ceil_div(ceil_div(width, kVector<T>), 32) * 32;
    return static_cast<int>(wanted < kMaxRowThreads ? wanted : kMaxRowThreads);
}

// Calls body(column, N or 1) over this thread's share of a row: groups of G neighbours, read at once where N
// is G and one by one where it is 1. The share and its order do not depend on N, so sums have the same bits
// for any alignment; and what a thread wrote in one sweep it may read in the next.
template <int N, int G, class Body>
__device__ inline void sweep(int64_t width, Body&& body) {
    for (int64_t c = int64_t{threadIdx.x} * G; c < width; c += int64_t{blockDim.x} * G) {
        if (N == G && c + G <= width)
            body(c, std::integral_constant<int, G>{});
        else
            for (int64_t one = c; one < c + G && one < width; ++one)
                body(one, std::integral_constant<int, 1>{});
    }
}

// What a thread reads in one sweep and wants again in the next one: kept in registers where its share of the
// row is one vector (one_vector), read again where it is longer.
template <class T>
class Kept {
public:
    template <int M>
    __device__ Pack<acc_t<T>, M> first(const T* from) {
        if constexpr (M == kVector<T>) {
            held_.raw = *reinterpret_cast<const Raw<T, M>*>(from);
            return unpack(held_.raw);
        } else {
            return load<M>(from);
        }
    }
    template <int M>
    __device__ void set(const Pack<acc_t<T>, M>& value) {
        if constexpr (M == kVector<T>)
#pragma unroll
            for (int i = 0; i < M; ++i) held_.raw.v[i] = from_acc<T>(value[i]);
    }
    template <int M>
    __device__ Pack<acc_t<T>, M> again(bool kept, const T* from) {
        if constexpr (M == kVector<T>)
            if (kept) {
                held_.forget();
                return unpack(held_.raw);
            }
        return load<M>(from);
    }

private:
    Held<T> held_;
};
// Whether it is: every thread of the block has one vector of N.
template <int N, class T>
__device__ inline bool one_vector(int64_t width) {
    return N == kVector<T> && width == int64_t{blockDim.x} * N;
}

}  // namespace levin::kernels::cuda
