#include "kernels/random.h"

#include <algorithm>

#include "kernels/backends.h"
#include "kernels/base/error.h"
#include "kernels/base/parallel_for.h"
#include "kernels/cpu/vector_math.h"

namespace levin::kernels::cpu {

namespace {

// Goes through blocks that stay in the first-level cache, one loop a stage: each is vector code by itself.
constexpr int64_t kBlock = 256;

void normal_block(const FillNormal& args, uint64_t first, int64_t count, double* out) {
    uint32_t low[kBlock], high[kBlock], a[kBlock], b[kBlock], c[kBlock], d[kBlock];
    for (int64_t i = 0; i < count; ++i) {
        const uint64_t index = first + static_cast<uint64_t>(i);
        low[i] = static_cast<uint32_t>(index);
        high[i] = static_cast<uint32_t>(index >> 32);
    }
    const uint32_t key = args.key[0], other_key = args.key[1];
    const uint32_t stream = args.stream[0], other_stream = args.stream[1];
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
        const random::Words words = random::philox({low[i], high[i], stream, other_stream}, key, other_key);
        a[i] = words.a, b[i] = words.b, c[i] = words.c, d[i] = words.d;
    }
    const double deviation = args.deviation;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) out[i] = deviation * random::normal({a[i], b[i], c[i], d[i]});
}

template <class T>
void fill_rows(const FillNormal& args) {
    const int64_t blocks = (args.columns + kBlock - 1) / kBlock;
    parallel_for(args.rows * blocks, 16, [&](int64_t begin, int64_t end) {
        double values[kBlock];
        for (int64_t i = begin; i < end; ++i) {
            const int64_t row = i / blocks, column = i % blocks * kBlock;
            const int64_t count = std::min(kBlock, args.columns - column);
            normal_block(
                args, args.first + static_cast<uint64_t>(row) * args.row_step + static_cast<uint64_t>(column),
                count, values);
            T* x = static_cast<T*>(args.x) + row * args.x_stride + column;
#pragma omp simd
            for (int64_t j = 0; j < count; ++j) x[j] = narrow<T>(static_cast<arithmetic_t<T>>(values[j]));
        }
    });
}

}  // namespace

void fill_normal(const FillNormal& args) {
    switch (args.dtype) {
        case DType::f64:
            return fill_rows<double>(args);
        case DType::f32:
            return fill_rows<float>(args);
        case DType::bf16:
            return fill_rows<bf16>(args);
        default:
            fail(Fault::internal, "fill_normal", "{} is no floating type", to_string(args.dtype));
    }
}

}  // namespace levin::kernels::cpu
