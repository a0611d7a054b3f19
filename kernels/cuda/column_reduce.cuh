// Sums over rows, one result per column, in two stages and a fixed order: partial sums of row chunks in
// float64, then the chunks. No atomics, so the same bits on every run.
#pragma once

#include "kernels/cuda/element.cuh"

namespace levin::kernels::cuda {

template <class A, int K>
struct ColumnOutputs {
    A* out[K];  // nullptr: not wanted
};

// Op: __device__ void add(int64_t row, int64_t column, double (&sum)[K]) const.
template <int K, class Op>
__global__ void column_partial_kernel(int64_t rows, int64_t columns, int64_t rows_per_chunk, Op op,
                                      double* partial) {
    __shared__ double shared[K][8][33];
    const int64_t column = int64_t{blockIdx.x} * 32 + threadIdx.x;
    const int64_t begin = int64_t{blockIdx.y} * rows_per_chunk;
    const int64_t end = begin + rows_per_chunk < rows ? begin + rows_per_chunk : rows;
    double sum[K] = {};
    if (column < columns)
        for (int64_t row = begin + threadIdx.y; row < end; row += 8) op.add(row, column, sum);
#pragma unroll
    for (int k = 0; k < K; ++k) shared[k][threadIdx.y][threadIdx.x] = sum[k];
    __syncthreads();
    if (threadIdx.y == 0 && column < columns)
#pragma unroll
        for (int k = 0; k < K; ++k) {
            double total = 0;
            for (int y = 0; y < 8; ++y) total += shared[k][y][threadIdx.x];
            partial[(int64_t{blockIdx.y} * K + k) * columns + column] = total;
        }
}

template <int K, class A>
__global__ void column_finish_kernel(int64_t columns, int64_t chunks, const double* partial,
                                     ColumnOutputs<A, K> outputs, double beta) {
    const int64_t column = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (column >= columns) return;
#pragma unroll
    for (int k = 0; k < K; ++k) {
        A* out = outputs.out[k];
        if (!out) continue;
        double total = 0;
        for (int64_t chunk = 0; chunk < chunks; ++chunk) total += partial[(chunk * K + k) * columns + column];
        // beta == 0 never reads what was there
        out[column] = static_cast<A>(beta == 0 ? total : beta * static_cast<double>(out[column]) + total);
    }
}

// outputs.out[k][c] = beta * old + sum over rows of op's k-th term.
template <class A, int K = 1, class Op>
void column_reduce(cudaStream_t stream, int64_t rows, int64_t columns, const Op& op,
                   const ColumnOutputs<A, K>& outputs, double beta) {
    if (columns <= 0) return;
    // Chunks depend on the shape alone; about 128 of them fill a chip also for narrow matrices.
    const int64_t rows_per_chunk = rows <= 64 * 128 ? 64 : ceil_div(rows, 128);
    const int64_t chunks = rows > 0 ? ceil_div(rows, rows_per_chunk) : 0;
    Scratch partial(stream, static_cast<size_t>(chunks * K * columns) * sizeof(double));
    if (chunks > 0) {
        column_partial_kernel<K>
            <<<dim3(static_cast<unsigned>(ceil_div(columns, 32)), static_cast<unsigned>(chunks)), dim3(32, 8),
               0, stream>>>(rows, columns, rows_per_chunk, op, partial.as<double>());
        LEVIN_CUDA_LAUNCHED();
    }
    column_finish_kernel<K><<<static_cast<unsigned>(ceil_div(columns, 128)), 128, 0, stream>>>(
        columns, chunks, partial.as<double>(), outputs, beta);
    LEVIN_CUDA_LAUNCHED();
}

}  // namespace levin::kernels::cuda
