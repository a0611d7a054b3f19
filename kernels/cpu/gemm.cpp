// Matrix products through libraries: f32 by oneDNN's sgemm, bf16 by oneDNN's matmul (AMX or AVX512 where
// there is), or panel by panel through sgemm on machines without; f64 by OpenBLAS.
#include "kernels/gemm.h"

#include <cblas.h>

#include <array>
#include <cstdlib>
#include <dnnl.hpp>
#include <map>
#include <memory>
#include <mutex>
#include <string_view>

#include "kernels/backends.h"
#include "kernels/base/error.h"
#include "kernels/cpu/loops.h"
#include "kernels/cpu/vector_math.h"

namespace levin::kernels::cpu {
namespace {

// C = beta * C: all that is left of a product over nothing, and without a read where beta is 0.
template <class C>
void scale_rows(const Gemm& g) {
    using A = arithmetic_t<C>;
    const A beta = static_cast<A>(g.beta);
    for_each_row(g.m, g.n, [&](int64_t r) {
        C* c = static_cast<C*>(g.c) + r * g.ldc;
        for (int64_t j = 0; j < g.n; ++j) c[j] = g.beta == 0 ? C{} : narrow<C>(beta * load(c[j]));
    });
}

// ---- f64
// -----------------------------------------------------------------------------------------------------------

// OpenBLAS keeps a pool of threads of its own that would fight OpenMP's: it is told to use one, and the
// product is divided here, along the longer side of C.
void gemm_f64(const Gemm& g) {
    static const bool single = [] {
        openblas_set_num_threads(1);
        return true;
    }();
    (void)single;
    LEVIN_CHECK(std::max({g.m, g.n, g.k, g.lda, g.ldb, g.ldc}) <= INT32_MAX, "gemm",
                "m {} n {} k {}: too large for BLAS", g.m, g.n, g.k);
    const auto product = [&](int64_t row, int64_t rows, int64_t column, int64_t columns) {
        const double* a = static_cast<const double*>(g.a) + (g.transpose_a ? row : row * g.lda);
        const double* b = static_cast<const double*>(g.b) + (g.transpose_b ? column * g.ldb : column);
        double* c = static_cast<double*>(g.c) + row * g.ldc + column;
        const auto i = [](int64_t value) { return static_cast<int>(value); };
        cblas_dgemm(CblasRowMajor, g.transpose_a ? CblasTrans : CblasNoTrans,
                    g.transpose_b ? CblasTrans : CblasNoTrans, i(rows), i(columns), i(g.k), g.alpha, a,
                    i(g.lda), b, i(g.ldb), g.beta, c, i(g.ldc));
    };
    constexpr int64_t step = 16;
    const bool by_rows = g.m >= g.n;
    const int64_t side = by_rows ? g.m : g.n, other = by_rows ? g.n : g.m;
    const int64_t work = step * other * g.k;  // multiply-adds of one step
    parallel_for((side + step - 1) / step, std::max<int64_t>(1, 65536 / std::max<int64_t>(1, work)),
                 [&](int64_t begin, int64_t end) {
                     const int64_t first = begin * step, count = std::min(side, end * step) - first;
                     if (by_rows)
                         product(first, count, 0, g.n);
                     else
                         product(0, g.m, first, count);
                 });
}

// ---- f32
// -----------------------------------------------------------------------------------------------------------

void sgemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha, const float* a,
           int64_t lda, const float* b, int64_t ldb, float beta, float* c, int64_t ldc) {
    const dnnl_status_t status = dnnl_sgemm(transpose_a ? 'T' : 'N', transpose_b ? 'T' : 'N', m, n, k, alpha,
                                            a, lda, b, ldb, beta, c, ldc);
    LEVIN_CHECK(status == dnnl_success, "gemm", "oneDNN sgemm of {} x {} x {} failed with status {}", m, n, k,
                static_cast<int>(status));
}

void gemm_f32(const Gemm& g) {
    sgemm(g.transpose_a, g.transpose_b, g.m, g.n, g.k, static_cast<float>(g.alpha),
          static_cast<const float*>(g.a), g.lda, static_cast<const float*>(g.b), g.ldb,
          static_cast<float>(g.beta), static_cast<float*>(g.c), g.ldc);
}

// ---- bf16
// ----------------------------------------------------------------------------------------------------------

// Work memory of a thread, kept between calls.
void* scratch(size_t bytes) {
    struct Free {
        void operator()(void* p) const { std::free(p); }
    };
    thread_local std::unique_ptr<void, Free> memory;
    thread_local size_t capacity = 0;
    if (bytes > capacity) {
        const size_t rounded = (bytes + 4095) / 4096 * 4096;
        memory.reset();
        capacity = 0;
        memory.reset(std::aligned_alloc(4096, rounded));
        LEVIN_CHECK(memory, "gemm", "no memory for {} bytes of work space", rounded);
        capacity = rounded;
    }
    return memory.get();
}

const dnnl::engine& engine() {
    static const dnnl::engine instance(dnnl::engine::kind::cpu, 0);
    return instance;
}

// A compiled product: its code depends on everything in the Gemm but the pointers, and on the number of
// threads.
struct Product {
    dnnl::memory::desc a, b, c, scratchpad;
    dnnl::matmul primitive;  // empty where oneDNN has nothing but its slow reference for it
};

Product compile(const Gemm& g) {
    using dnnl::memory;
    const auto strided = [](int64_t rows, int64_t columns, memory::data_type type, bool transposed,
                            int64_t ld) {
        return memory::desc({rows, columns}, type, transposed ? memory::dims{1, ld} : memory::dims{ld, 1});
    };
    const auto bf16_type = memory::data_type::bf16;
    Product product;
    product.a = strided(g.m, g.k, bf16_type, g.transpose_a, g.lda);
    product.b = strided(g.k, g.n, bf16_type, g.transpose_b, g.ldb);
    product.c = strided(g.m, g.n, g.c_dtype == DType::f32 ? memory::data_type::f32 : bf16_type, false, g.ldc);
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(
        dnnl::scratchpad_mode::user);  // the library's own is not safe among threads
    dnnl::post_ops after;
#if DNNL_VERSION_MAJOR >= 3
    if (g.alpha != 1)
        after.append_eltwise(dnnl::algorithm::eltwise_linear, static_cast<float>(g.alpha), 0.0f);
#else
    if (g.alpha != 1) attributes.set_output_scales(0, {static_cast<float>(g.alpha)});
#endif
    if (g.beta != 0) after.append_sum(static_cast<float>(g.beta));
    attributes.set_post_ops(after);
#if DNNL_VERSION_MAJOR >= 3
    const dnnl::matmul::primitive_desc description(engine(), product.a, product.b, product.c, attributes,
                                                   true);
#else
    const dnnl::matmul::primitive_desc description(dnnl::matmul::desc(product.a, product.b, product.c),
                                                   attributes, engine(), true);
#endif
    if (!description) return product;
    if (std::string_view(description.impl_info_str()).find("ref") != std::string_view::npos) return product;
    product.scratchpad = description.scratchpad_desc();
    product.primitive = dnnl::matmul(description);
    return product;
}

std::shared_ptr<const Product> product_for(const Gemm& g) {
    using Key = std::array<int64_t, 12>;
    const Key key{g.m,
                  g.n,
                  g.k,
                  g.lda,
                  g.ldb,
                  g.ldc,
                  g.transpose_a,
                  g.transpose_b,
                  static_cast<int64_t>(g.c_dtype),
                  std::bit_cast<int64_t>(g.alpha),
                  std::bit_cast<int64_t>(g.beta),
                  omp_in_parallel() ? 1 : omp_get_max_threads()};
    static std::mutex mutex;
    static std::map<Key, std::shared_ptr<const Product>> cache;
    const std::lock_guard lock(mutex);
    if (const auto found = cache.find(key); found != cache.end()) return found->second;
    // A training run has some dozens of shapes. Where lengths vary without end, memory stays bounded.
    if (cache.size() >= 512) cache.clear();
    return cache[key] = std::make_shared<const Product>(compile(g));
}

void widen(const bf16* x, int64_t rows, int64_t columns, int64_t stride, float* y) {
    for_each_row(rows, columns, [&](int64_t r) {
#pragma omp simd
        for (int64_t c = 0; c < columns; ++c) y[r * columns + c] = load(x[r * stride + c]);
    });
}

// For machines without bf16 instructions: panels of A and B are widened to f32 and multiplied by sgemm.
void gemm_bf16_by_panels(const Gemm& g) {
    constexpr int64_t panel = 512;
    const int64_t m_panel = std::min(panel, g.m), n_panel = std::min(panel, g.n);
    float* const a =
        static_cast<float*>(scratch(static_cast<size_t>((m_panel + n_panel) * g.k + m_panel * n_panel) * 4));
    float* const b = a + m_panel * g.k;
    float* const c = b + n_panel * g.k;
    for (int64_t j = 0; j < g.n; j += panel) {
        const int64_t columns = std::min(panel, g.n - j);
        const bf16* b_bf16 = static_cast<const bf16*>(g.b) + (g.transpose_b ? j * g.ldb : j);
        widen(b_bf16, g.transpose_b ? columns : g.k, g.transpose_b ? g.k : columns, g.ldb, b);
        for (int64_t i = 0; i < g.m; i += panel) {
            const int64_t rows = std::min(panel, g.m - i);
            const bf16* a_bf16 = static_cast<const bf16*>(g.a) + (g.transpose_a ? i : i * g.lda);
            widen(a_bf16, g.transpose_a ? g.k : rows, g.transpose_a ? rows : g.k, g.lda, a);
            const bool direct = g.c_dtype == DType::f32;
            const float alpha = static_cast<float>(g.alpha), beta = static_cast<float>(g.beta);
            float* to = direct ? static_cast<float*>(g.c) + i * g.ldc + j : c;
            sgemm(g.transpose_a, g.transpose_b, rows, columns, g.k, alpha, a, g.transpose_a ? rows : g.k, b,
                  g.transpose_b ? g.k : columns, direct ? beta : 0, to, direct ? g.ldc : columns);
            if (direct) continue;
            for_each_row(rows, columns, [&](int64_t r) {
                bf16* out = static_cast<bf16*>(g.c) + (i + r) * g.ldc + j;
                const float* sum = c + r * columns;
                if (g.beta == 0) {
#pragma omp simd
                    for (int64_t x = 0; x < columns; ++x) out[x] = narrow<bf16>(sum[x]);
                } else {
#pragma omp simd
                    for (int64_t x = 0; x < columns; ++x) out[x] = narrow<bf16>(sum[x] + beta * load(out[x]));
                }
            });
        }
    }
}

void gemm_bf16(const Gemm& g) {
    const std::shared_ptr<const Product> product = product_for(g);
    if (!product->primitive) return gemm_bf16_by_panels(g);
    const auto wrap = [](const dnnl::memory::desc& description, const void* data) {
        return dnnl::memory(description, engine(), const_cast<void*>(data));
    };
    dnnl::stream stream(engine());
    product->primitive.execute(
        stream, {{DNNL_ARG_SRC, wrap(product->a, g.a)},
                 {DNNL_ARG_WEIGHTS, wrap(product->b, g.b)},
                 {DNNL_ARG_DST, wrap(product->c, g.c)},
                 {DNNL_ARG_SCRATCHPAD, wrap(product->scratchpad, scratch(product->scratchpad.get_size()))}});
    stream.wait();
}

}  // namespace

void gemm(const Gemm& g) {
    const bool known = g.c_dtype == g.dtype || (g.dtype == DType::bf16 && g.c_dtype == DType::f32);
    LEVIN_CHECK(is_floating(g.dtype) && known, "gemm",
                "{} factors and {} result, expected f64, f32, bf16 or bf16 -> f32", to_string(g.dtype),
                to_string(g.c_dtype));
    if (g.m == 0 || g.n == 0) return;
    if (g.k == 0 || g.alpha == 0) {
        if (g.c_dtype == DType::f64) return scale_rows<double>(g);
        return g.c_dtype == DType::f32 ? scale_rows<float>(g) : scale_rows<bf16>(g);
    }
    switch (g.dtype) {
        case DType::f64:
            return gemm_f64(g);
        case DType::f32:
            return gemm_f32(g);
        default:
            break;
    }
    try {
        gemm_bf16(g);
    } catch (const dnnl::error& error) {
        fail(Fault::internal, "gemm", "oneDNN matmul of {} x {} x {}: {}", g.m, g.n, g.k, error.message);
    }
}

}  // namespace levin::kernels::cpu
