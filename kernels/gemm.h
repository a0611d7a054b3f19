// Dense matrix products: cuBLASLt on GPUs, oneDNN (f32, bf16) and OpenBLAS (f64) on CPUs.
#pragma once

#include "kernels/kernel.h"

namespace levin::kernels {

// C[m,n] = alpha * op(A)[m,k] op(B)[k,n] + beta * C, op = transpose where asked. A and B share `dtype`; C is
// `c_dtype`: dtype or its acc (weight gradients of bf16 accumulate in f32). Sums are formed in acc. beta == 0
// never reads C. lda, ldb, ldc are row strides of the matrices as stored (A is [m,k], or [k,m] when
// transpose_a).
struct Gemm {
    bool transpose_a = false, transpose_b = false;
    int64_t m = 0, n = 0, k = 0;
    DType dtype = DType::f32, c_dtype = DType::f32;
    const void* a = nullptr;
    int64_t lda = 0;
    const void* b = nullptr;
    int64_t ldb = 0;
    void* c = nullptr;
    int64_t ldc = 0;
    double alpha = 1, beta = 0;
};
void gemm(const Stream& stream, const Gemm& args);

// How the algorithm of a product was chosen on a GPU: of `proposals` algorithms, the one at place `chosen`
// (0: the library's own first guess) won. Times are those of the choice; 0 when it was read from the cache
// file or not timed. All zero on a CPU. Chooses, if that has not happened yet: where beta is 0, C is written.
struct GemmTuning {
    int proposals = 0, chosen = 0;
    double first_ms = 0, chosen_ms = 0;
    bool from_file = false;
};
GemmTuning gemm_tuning(const Stream& stream, const Gemm& args);
namespace cuda {  // implemented by cuda/ and, throwing "built without CUDA", by cuda_absent/
GemmTuning gemm_tuning(const Stream& stream, const Gemm& args);
}

}  // namespace levin::kernels
