// Elements on the device: conversion to the accumulator type, vectors of 16 bytes, dispatch by DType, and the
// two launch shapes of kernels that touch each element once.
#pragma once

#include <cuda_bf16.h>

#include <initializer_list>

#include "kernels/cuda/check.h"

namespace levin::kernels::cuda {

using Bf16 = __nv_bfloat16;  // same bits and rounding as levin::bf16

template <class T>
struct Accumulator {
    using type = float;
};
template <>
struct Accumulator<double> {
    using type = double;
};
template <class T>
using acc_t = typename Accumulator<T>::type;

__device__ inline float to_acc(float x) { return x; }
__device__ inline double to_acc(double x) { return x; }
__device__ inline float to_acc(Bf16 x) { return __bfloat162float(x); }
template <class T>
__device__ inline T from_acc(acc_t<T> x) {
    return x;
}
template <>
__device__ inline Bf16 from_acc<Bf16>(float x) {
    return __float2bfloat16_rn(x);
}

// N accumulators, read from and written to N neighbouring elements in one access where N * sizeof(T) allows.
template <class A, int N>
struct Pack {
    A v[N];
    __device__ A& operator[](int i) { return v[i]; }
    __device__ const A& operator[](int i) const { return v[i]; }
};
template <class T, int N>
struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Raw {
    T v[N];
};
template <class T, int N>
__device__ inline Pack<acc_t<T>, N> unpack(const Raw<T, N>& raw) {
    Pack<acc_t<T>, N> pack;
#pragma unroll
    for (int i = 0; i < N; ++i) pack[i] = to_acc(raw.v[i]);
    return pack;
}
template <int N, class T>
__device__ inline Pack<acc_t<T>, N> load(const T* from) {
    return unpack(*reinterpret_cast<const Raw<T, N>*>(from));
}
template <int N, class T>
__device__ inline void store(T* to, const Pack<acc_t<T>, N>& pack) {
    Raw<T, N> raw;
#pragma unroll
    for (int i = 0; i < N; ++i) raw.v[i] = from_acc<T>(pack[i]);
    *reinterpret_cast<Raw<T, N>*>(to) = raw;
}

// Elements in 16 bytes.
template <class T>
constexpr int kVector = 16 / static_cast<int>(sizeof(T));

// A vector that stays in registers between two sweeps over a row. forget(): the compiler would else keep what
// it made of the elements as well, in twice the registers.
template <class T>
union Held {
    uint4 bits;
    Raw<T, kVector<T>> raw;
    __device__ Held() {}
    __device__ void forget() { asm volatile("" : "+r"(bits.x), "+r"(bits.y), "+r"(bits.z), "+r"(bits.w)); }
};

// A matrix as a kernel sees it: may its rows be read in 16-byte vectors?
struct Rows {
    const void* data;
    int64_t stride;
};
template <class T>
bool vectorizable(std::initializer_list<Rows> all) {
    for (const Rows& one : all)
        if (reinterpret_cast<uintptr_t>(one.data) % 16 != 0 || one.stride % kVector<T> != 0) return false;
    return true;
}

template <class T>
struct Tag {
    using type = T;
};
// Calls body(Tag<T>) with the device type of a floating dtype.
template <class Body>
void by_type(DType dtype, const char* kernel, const Body& body) {
    switch (dtype) {
        case DType::f64:
            return body(Tag<double>{});
        case DType::f32:
            return body(Tag<float>{});
        case DType::bf16:
            return body(Tag<Bf16>{});
        default:
            fail_arguments(kernel, "element type must be f64, f32 or bf16", static_cast<int64_t>(dtype));
    }
}

// Op: template <int N> __device__ void operator()(int64_t row, int64_t column) const, for N elements from
// there.
template <int N, class Op>
__global__ void map_rows_kernel(int64_t rows, int64_t columns, Op op) {
    const int64_t row = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
    if (row >= rows) return;
    for (int64_t c = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * N; c < columns;
         c += int64_t{gridDim.y} * blockDim.x * N) {
        if (c + N <= columns)
            op.template apply<N>(row, c);
        else
            for (int64_t tail = c; tail < columns; ++tail) op.template apply<1>(row, tail);
    }
}

// Runs op over rows x columns, N elements a thread: N = kVector<T> where `vector` says the rows allow it.
template <class T, class Op>
void map_rows(cudaStream_t stream, int64_t rows, int64_t columns, bool vector, const Op& op) {
    if (rows <= 0 || columns <= 0) return;
    const int64_t vectors = ceil_div(columns, vector ? kVector<T> : 1);
    int width = 32;
    while (width < 256 && width < vectors) width *= 2;
    const dim3 block(width, 256 / width);
    const dim3 grid(
        static_cast<unsigned>(ceil_div(rows, block.y)),
        static_cast<unsigned>(ceil_div(vectors, width) < 32768 ? ceil_div(vectors, width) : 32768));
    if (vector)
        map_rows_kernel<kVector<T>><<<grid, block, 0, stream>>>(rows, columns, op);
    else
        map_rows_kernel<1><<<grid, block, 0, stream>>>(rows, columns, op);
    LEVIN_CUDA_LAUNCHED();
}

// The same over `count` contiguous elements: row is 0, column the index.
template <class T, class Op>
void map_flat(cudaStream_t stream, int64_t count, bool vector, const Op& op) {
    // Rows of 8192 elements would need a ragged tail; one row with many column blocks has it for free.
    map_rows<T>(stream, 1, count, vector, op);
}

}  // namespace levin::kernels::cuda
