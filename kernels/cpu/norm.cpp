#include "kernels/norm.h"

#include <vector>

#include "kernels/backends.h"
#include "kernels/cpu/activation.h"
#include "kernels/cpu/loops.h"

namespace levin::kernels::cpu {
namespace {

template <class T>
void forward_row(const NormForward& args, int64_t r) {
    using A = arithmetic_t<T>;
    const int64_t width = args.width;
    const bool layer = args.kind == WeightedNorm::layer;
    const T* x = static_cast<const T*>(args.x) + r * width;
    const T* weight = static_cast<const T*>(args.weight);
    const T* bias = static_cast<const T*>(args.bias);
    T* y = static_cast<T*>(args.y) + r * width;
    A mean = 0, sum = 0;
    if (layer) {
#pragma omp simd reduction(+ : mean)
        for (int64_t c = 0; c < width; ++c) mean += load(x[c]);
        mean /= static_cast<A>(width);
        static_cast<A*>(args.mean)[r] = mean;
    }
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < width; ++c) sum += (load(x[c]) - mean) * (load(x[c]) - mean);
    const A rstd = A(1) / std::sqrt(sum / static_cast<A>(width) + static_cast<A>(args.eps));
    static_cast<A*>(args.rstd)[r] = rstd;
    if (layer) {
#pragma omp simd
        for (int64_t c = 0; c < width; ++c)
            y[c] = narrow<T>((load(x[c]) - mean) * rstd * load(weight[c]) + load(bias[c]));
    } else {
#pragma omp simd
        for (int64_t c = 0; c < width; ++c) y[c] = narrow<T>(load(x[c]) * rstd * load(weight[c]));
    }
}

// dx of one row; its share of dweight and dbias is added to `dweight` and `dbias` (rms: nullptr).
template <class T, bool Layer>
void backward_row(const NormBackward& args, int64_t r, arithmetic_t<T>* dweight, arithmetic_t<T>* dbias) {
    using A = arithmetic_t<T>;
    const int64_t width = args.width;
    const T* x = static_cast<const T*>(args.x) + r * width;
    const T* dy = static_cast<const T*>(args.dy) + r * width;
    const T* weight = static_cast<const T*>(args.weight);
    T* dx = static_cast<T*>(args.dx) + r * width;
    const A rstd = static_cast<const A*>(args.rstd)[r];
    const A mean = Layer ? static_cast<const A*>(args.mean)[r] : A(0);
    A along = 0, offset = 0;  // means of xhat * (dy weight) and of dy weight
#pragma omp simd reduction(+ : along, offset)
    for (int64_t c = 0; c < width; ++c) {
        const A d = load(dy[c]), xhat = (load(x[c]) - mean) * rstd;
        dweight[c] += d * xhat;
        along += d * load(weight[c]) * xhat;
        if constexpr (Layer) {
            dbias[c] += d;
            offset += d * load(weight[c]);
        }
    }
    along /= static_cast<A>(width);
    offset /= static_cast<A>(width);
#pragma omp simd
    for (int64_t c = 0; c < width; ++c) {
        const A xhat = (load(x[c]) - mean) * rstd;
        dx[c] = narrow<T>((load(dy[c]) * load(weight[c]) - offset - xhat * along) * rstd);
    }
}

template <class A>
void sum_parts(const std::vector<A>& parts, int64_t stride, int64_t width, A* sum, A beta) {
    if (!sum) return;
    const int64_t count = static_cast<int64_t>(parts.size()) / stride;
    for_each_column_range(count, width, [&](int64_t begin, int64_t end) {
        for (int64_t c = begin; c < end; ++c) sum[c] = beta == A(0) ? A(0) : beta * sum[c];
        for (int64_t p = 0; p < count; ++p) {
            const A* part = parts.data() + p * stride;
#pragma omp simd
            for (int64_t c = begin; c < end; ++c) sum[c] += part[c];
        }
    });
}

template <class T, bool Layer>
void backward(const NormBackward& args) {
    using A = arithmetic_t<T>;
    // The rows are cut into blocks by their number alone, and the sums of the blocks added in order: dweight
    // and dbias do not depend on the number of threads.
    const int64_t block = std::max<int64_t>(32, (args.rows + 255) / 256),
                  blocks = (args.rows + block - 1) / block;
    const int64_t stride = (args.width + 15) / 16 * 16;
    std::vector<A> dweight(static_cast<size_t>(blocks * stride));
    std::vector<A> dbias(Layer ? dweight.size() : 0);
    parallel_for(blocks, 1, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b)
            for (int64_t r = b * block; r < std::min(args.rows, (b + 1) * block); ++r)
                backward_row<T, Layer>(args, r, dweight.data() + b * stride,
                                       Layer ? dbias.data() + b * stride : nullptr);
    });
    const A beta = static_cast<A>(args.beta);
    sum_parts(dweight, stride, args.width, static_cast<A*>(args.dweight), beta);
    if (Layer) sum_parts(dbias, stride, args.width, static_cast<A*>(args.dbias), beta);
}

}  // namespace

void norm_forward(const NormForward& args) {
    with_floating(args.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        for_each_row(args.rows, args.width, [&](int64_t r) { forward_row<T>(args, r); });
    });
}

void norm_backward(const NormBackward& args) {
    with_floating(args.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        if (args.kind == WeightedNorm::layer)
            backward<T, true>(args);
        else
            backward<T, false>(args);
    });
}

}  // namespace levin::kernels::cpu
