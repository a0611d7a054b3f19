// Matrix products through cuBLASLt. The algorithm is chosen once per shape (gemm_tuning.cpp) and kept.
#include "kernels/gemm.h"

#include <array>
#include <map>
#include <memory>
#include <mutex>

#include "kernels/backends.h"
#include "kernels/base/error.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/gemm_plan.h"
#include "kernels/device_memory.h"

namespace levin::kernels::cuda {

namespace {

constexpr size_t kMaxWorkspace = size_t{64} << 20;

cudaDataType_t cuda_type(DType type) {
    switch (type) {
        case DType::f64:
            return CUDA_R_64F;
        case DType::f32:
            return CUDA_R_32F;
        case DType::bf16:
            return CUDA_R_16BF;
        default:
            fail(Fault::internal, "cuda gemm", "element type {} given, expected f64, f32 or bf16",
                 to_string(type));
    }
}

// What decides the algorithm: shape, strides, types, alignment, whether C is read.
using Key = std::array<int64_t, 10>;

Key key_of(int device, const Gemm& g) {
    const int64_t flags = g.transpose_a + 2 * g.transpose_b + 4 * (g.beta != 0) +
                          8 * static_cast<int64_t>(g.dtype) + 128 * static_cast<int64_t>(g.c_dtype);
    return {device,
            g.m,
            g.n,
            g.k,
            g.lda,
            g.ldb,
            g.ldc,
            flags,
            gemm_alignment(g.a) * 1000 + gemm_alignment(g.b),
            gemm_alignment(g.c)};
}

// Plans live as long as the process: a training run has a few dozen.
const GemmPlan& plan_for(cudaStream_t stream, int device, const Gemm& g) {
    static std::mutex mutex;
    static std::map<Key, std::unique_ptr<GemmPlan>> plans;
    const std::lock_guard lock(mutex);
    std::unique_ptr<GemmPlan>& plan = plans[key_of(device, g)];
    if (plan) return *plan;
    const auto make = [&](const Gemm& product) {
        auto made = std::make_unique<GemmPlan>(product);
        choose_algorithm(stream, device, product, g.beta == 0, *made);
        return made;
    };
    plan = make(g);
    // A weight gradient is first written, later added to. While it is about to be written its memory is free
    // for timing, so the sum is prepared now and needs no stand-in for C.
    if (g.beta == 0 && g.c_dtype != g.dtype) {
        Gemm sum = g;
        sum.beta = 1;
        std::unique_ptr<GemmPlan>& sum_plan = plans[key_of(device, sum)];
        if (!sum_plan) sum_plan = make(sum);
    }
    return *plan;
}

// Products of one stream follow each other, so they share one workspace. Never freed: recorded graphs know
// its address.
void* workspace_of(cudaStream_t stream, int device) {
    static std::mutex mutex;
    static std::map<std::pair<int, cudaStream_t>, void*> workspaces;
    const std::lock_guard lock(mutex);
    void*& workspace = workspaces[{device, stream}];
    if (!workspace) workspace = cuda::allocate(Device{DeviceType::cuda, device}, kMaxWorkspace);
    return workspace;
}

// k == 0: C = beta * C, row by row where C is a view.
void scale_only(const Stream& stream, const Gemm& g) {
    const bool whole = g.ldc == g.n;
    const int64_t rows = whole ? 1 : g.m, columns = whole ? g.m * g.n : g.n;
    for (int64_t r = 0; r < rows; ++r) {
        void* row = static_cast<char*>(g.c) + r * g.ldc * size_of(g.c_dtype);
        if (g.beta == 0)
            cuda::fill(stream, Fill{columns, g.c_dtype, row, 0});
        else
            cuda::add(stream, Add{columns, g.c_dtype, g.beta, row, 0, nullptr, row});
    }
}

void check_types(const Gemm& g) {
    LEVIN_CHECK(g.c_dtype == g.dtype || g.c_dtype == accumulator_of(g.dtype), "cuda gemm",
                "{} operands cannot give a {} result; expected {} or {}", to_string(g.dtype),
                to_string(g.c_dtype), to_string(g.dtype), to_string(accumulator_of(g.dtype)));
}

}  // namespace

cublasLtHandle_t cublas_handle(int device) {
    static std::mutex mutex;
    static std::map<int, cublasLtHandle_t> handles;
    const std::lock_guard lock(mutex);
    cublasLtHandle_t& handle = handles[device];
    if (!handle) LEVIN_CUBLAS_CHECK(cublasLtCreate(&handle));
    return handle;
}

uint32_t gemm_alignment(const void* pointer) {
    const auto address = reinterpret_cast<uintptr_t>(pointer);
    uint32_t alignment = 256;
    while (address % alignment != 0) alignment /= 2;
    return alignment;
}

GemmLayout::GemmLayout(cudaDataType_t type, int64_t rows, int64_t columns, int64_t stride) {
    LEVIN_CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&handle, type, rows, columns, stride));
}

// Our matrices are row-major. Read column by column, row-major C[m,n] is C^T[n,m] = op(B)^T op(A)^T, so B
// comes first, and "transposed" means the same for both.
GemmPlan::GemmPlan(const Gemm& g)
    : a(cuda_type(g.dtype), g.transpose_b ? g.k : g.n, g.transpose_b ? g.n : g.k, g.ldb),
      b(cuda_type(g.dtype), g.transpose_a ? g.m : g.k, g.transpose_a ? g.k : g.m, g.lda),
      c(cuda_type(g.c_dtype), g.n, g.m, g.ldc) {
    const bool is_double = g.dtype == DType::f64;
    // f32 products are true f32: no TF32, whatever the environment allows.
    const cublasComputeType_t compute = is_double               ? CUBLAS_COMPUTE_64F
                                        : g.dtype == DType::f32 ? CUBLAS_COMPUTE_32F_PEDANTIC
                                                                : CUBLAS_COMPUTE_32F;
    LEVIN_CUBLAS_CHECK(cublasLtMatmulDescCreate(&operation, compute, is_double ? CUDA_R_64F : CUDA_R_32F));
    const cublasOperation_t op_a = g.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasOperation_t op_b = g.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    LEVIN_CUBLAS_CHECK(
        cublasLtMatmulDescSetAttribute(operation, CUBLASLT_MATMUL_DESC_TRANSA, &op_a, sizeof op_a));
    LEVIN_CUBLAS_CHECK(
        cublasLtMatmulDescSetAttribute(operation, CUBLASLT_MATMUL_DESC_TRANSB, &op_b, sizeof op_b));
}

GemmPlan::~GemmPlan() {
    if (operation) cublasLtMatmulDescDestroy(operation);
}

std::vector<cublasLtMatmulHeuristicResult_t> GemmPlan::proposals(int device, const Gemm& g, int count) const {
    cublasLtMatmulPreference_t preference;
    LEVIN_CUBLAS_CHECK(cublasLtMatmulPreferenceCreate(&preference));
    const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
        LEVIN_CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value));
    };
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kMaxWorkspace);
    // Split-K only through the workspace in the compute type: a fixed order and no rounding to C's type in
    // between.
    set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
        static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, gemm_alignment(g.b));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, gemm_alignment(g.a));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, gemm_alignment(g.c));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, gemm_alignment(g.c));
    std::vector<cublasLtMatmulHeuristicResult_t> results(static_cast<size_t>(count));
    int found = 0;
    const cublasStatus_t status =
        cublasLtMatmulAlgoGetHeuristic(cublas_handle(device), operation, a.handle, b.handle, c.handle,
                                       c.handle, preference, count, results.data(), &found);
    cublasLtMatmulPreferenceDestroy(preference);
    results.resize(static_cast<size_t>(status == CUBLAS_STATUS_SUCCESS ? found : 0));
    std::erase_if(results, [](const auto& result) { return result.state != CUBLAS_STATUS_SUCCESS; });
    LEVIN_CHECK(!results.empty(), "cuda gemm",
                "cuBLASLt knows no algorithm for m {}, n {}, k {}, {} to {}, strides {}, {}, {} (status {})",
                g.m, g.n, g.k, to_string(g.dtype), to_string(g.c_dtype), g.lda, g.ldb, g.ldc,
                static_cast<int>(status));
    return results;
}

void GemmPlan::run(cudaStream_t stream, int device, const Gemm& g, void* target,
                   const cublasLtMatmulAlgo_t& chosen, void* scratch, size_t scratch_bytes) const {
    const float alpha32 = static_cast<float>(g.alpha), beta32 = static_cast<float>(g.beta);
    const bool is_double = g.dtype == DType::f64;
    const void* alpha = is_double ? static_cast<const void*>(&g.alpha) : &alpha32;
    const void* beta = is_double ? static_cast<const void*>(&g.beta) : &beta32;
    LEVIN_CUBLAS_CHECK(cublasLtMatmul(cublas_handle(device), operation, alpha, g.b, a.handle, g.a, b.handle,
                                      beta, target, c.handle, target, c.handle, &chosen, scratch,
                                      scratch_bytes, stream));
}

void gemm(const Stream& stream, const Gemm& g) {
    check_types(g);
    if (g.m == 0 || g.n == 0) return;
    const cudaStream_t s = use(stream);
    if (g.k == 0) return scale_only(stream, g);
    const GemmPlan& plan = plan_for(s, stream.device.index, g);
    plan.run(s, stream.device.index, g, g.c, plan.algorithm,
             plan.workspace > 0 ? workspace_of(s, stream.device.index) : nullptr, plan.workspace);
}

GemmTuning gemm_tuning(const Stream& stream, const Gemm& g) {
    check_types(g);
    if (g.m == 0 || g.n == 0 || g.k == 0) return {};
    return plan_for(use(stream), stream.device.index, g).tuning;
}

}  // namespace levin::kernels::cuda
