// One matrix product as cuBLASLt sees it, and the choice of its algorithm.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <string>
#include <vector>

#include "kernels/gemm.h"

namespace levin::kernels::cuda {

// The device's handle: made at first use and never destroyed (it may outlive the driver's own state at exit).
cublasLtHandle_t cublas_handle(int device);

struct GemmLayout {
    cublasLtMatrixLayout_t handle = nullptr;
    GemmLayout(cudaDataType_t type, int64_t rows, int64_t columns, int64_t stride);
    GemmLayout(const GemmLayout&) = delete;
    ~GemmLayout() { cublasLtMatrixLayoutDestroy(handle); }
};

// Shape, types and transposes of a product (its pointers only by their alignment), and the algorithm.
struct GemmPlan {
    cublasLtMatmulDesc_t operation = nullptr;
    GemmLayout a, b, c;
    cublasLtMatmulAlgo_t algorithm{};
    size_t workspace = 0;
    GemmTuning tuning;

    explicit GemmPlan(const Gemm& product);
    ~GemmPlan();
    GemmPlan(const GemmPlan&) = delete;

    // What cuBLASLt proposes, best guess first, at most `count`. Deterministic algorithms only.
    std::vector<cublasLtMatmulHeuristicResult_t> proposals(int device, const Gemm& product, int count) const;
    // Queues the product with an algorithm; `c` stands in for product.c.
    void run(cudaStream_t stream, int device, const Gemm& product, void* c,
             const cublasLtMatmulAlgo_t& algorithm, void* workspace, size_t workspace_bytes) const;
};

// Largest power of two up to 256 that divides the address.
uint32_t gemm_alignment(const void* pointer);

// Sets plan.algorithm: the fastest of the proposals, as remembered or by timing them on `stream`; the first
// one where timing is off, not worth it (small products) or not possible (a captured stream, no memory for a
// stand-in of C). `c_is_free`: C holds nothing of value yet, timing may write there; else it writes to a
// stand-in, and C is not touched.
void choose_algorithm(cudaStream_t stream, int device, const Gemm& product, bool c_is_free, GemmPlan& plan);

}  // namespace levin::kernels::cuda
