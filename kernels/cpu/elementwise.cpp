#include "kernels/elementwise.h"

#include <cstring>

#include "kernels/backends.h"
#include "kernels/base/error.h"
#include "kernels/cpu/activation.h"
#include "kernels/cpu/loops.h"

namespace levin::kernels::cpu {
namespace {

// Every element type, integers too.
template <class Body>
void with_any(DType dtype, const Body& body) {
    switch (dtype) {
        case DType::f64:
            return body(TypeTag<double>{});
        case DType::f32:
            return body(TypeTag<float>{});
        case DType::bf16:
            return body(TypeTag<bf16>{});
        case DType::i64:
            return body(TypeTag<int64_t>{});
        case DType::i32:
            return body(TypeTag<int32_t>{});
        case DType::i16:
            return body(TypeTag<int16_t>{});
        case DType::i8:
            return body(TypeTag<int8_t>{});
        case DType::u16:
            return body(TypeTag<uint16_t>{});
        case DType::u8:
            return body(TypeTag<uint8_t>{});
    }
}

template <class To, class From>
To convert(From x) {
    if constexpr (std::is_same_v<From, bf16>)
        return convert<To>(load(x));
    else if constexpr (std::is_same_v<To, bf16>)
        return narrow<bf16>(static_cast<float>(x));
    else
        return static_cast<To>(x);
}

template <class X, class Y>
void copy_rows(const Copy& args) {
    const X* x = static_cast<const X*>(args.x);
    Y* y = static_cast<Y*>(args.y);
    for_each_row(args.rows, args.columns, [&](int64_t r) {
        const X* from = x + r * args.x_stride;
        Y* to = y + r * args.y_stride;
        if constexpr (std::is_same_v<X, Y>) {
            std::memcpy(to, from, static_cast<size_t>(args.columns) * sizeof(X));
        } else {
#pragma omp simd
            for (int64_t c = 0; c < args.columns; ++c) to[c] = convert<Y>(from[c]);
        }
    });
}

// y[i] = f(i) over a contiguous range, split among threads.
template <class T, class F>
void map(int64_t count, T* y, const F& f) {
    parallel_for(count, kGrain, [&](int64_t begin, int64_t end) {
#pragma omp simd
        for (int64_t i = begin; i < end; ++i) y[i] = f(i);
    });
}

}  // namespace

void fill(const Fill& args) {
    with_any(args.dtype, [&](auto tag) {
        using T = typename decltype(tag)::type;
        const T value = convert<T>(args.value);
        map(args.count, static_cast<T*>(args.x), [=](int64_t) { return value; });
    });
}

void copy(const Copy& args) {
    // Rows that follow each other are one run of elements: no short loops.
    Copy merged = args;
    if (args.rows > 1 && args.x_stride == args.columns && args.y_stride == args.columns) {
        constexpr int64_t run = kGrain;
        const int64_t count = args.rows * args.columns, whole = count / run * run;
        merged.rows = whole / run;
        merged.columns = merged.x_stride = merged.y_stride = run;
        if (whole < count) {
            Copy rest = merged;
            rest.rows = 1;
            rest.columns = count - whole;
            rest.x = static_cast<const char*>(args.x) + whole * static_cast<int64_t>(size_of(args.x_dtype));
            rest.y = static_cast<char*>(args.y) + whole * static_cast<int64_t>(size_of(args.y_dtype));
            copy(rest);
        }
    }
    with_any(merged.x_dtype, [&](auto x_tag) {
        with_any(merged.y_dtype, [&](auto y_tag) {
            copy_rows<typename decltype(x_tag)::type, typename decltype(y_tag)::type>(merged);
        });
    });
}

void add(const Add& args) {
    with_floating(args.dtype, [&](auto tag) {
        using T = typename decltype(tag)::type;
        using A = arithmetic_t<T>;
        const A alpha = static_cast<A>(args.alpha), beta = static_cast<A>(args.beta);
        const T* a = static_cast<const T*>(args.a);
        const T* b = static_cast<const T*>(args.b);
        T* y = static_cast<T*>(args.y);
        if (b == nullptr)
            map(args.count, y, [=](int64_t i) { return narrow<T>(alpha * load(a[i])); });
        else
            map(args.count, y, [=](int64_t i) { return narrow<T>(alpha * load(a[i]) + beta * load(b[i])); });
    });
}

void multiply(const Multiply& args) {
    with_floating(args.dtype, [&](auto tag) {
        using T = typename decltype(tag)::type;
        const T* a = static_cast<const T*>(args.a);
        const T* b = static_cast<const T*>(args.b);
        map(args.count, static_cast<T*>(args.y),
            [=](int64_t i) { return narrow<T>(load(a[i]) * load(b[i])); });
    });
}

void bias_add(const BiasAdd& args) {
    with_floating(args.dtype, [&](auto tag) {
        using T = typename decltype(tag)::type;
        const T* bias = static_cast<const T*>(args.bias);
        for_each_row(args.rows, args.columns, [&](int64_t r) {
            const T* x = static_cast<const T*>(args.x) + r * args.x_stride;
            T* y = static_cast<T*>(args.y) + r * args.y_stride;
#pragma omp simd
            for (int64_t c = 0; c < args.columns; ++c) y[c] = narrow<T>(load(x[c]) + load(bias[c]));
        });
    });
}

void column_sum(const ColumnSum& args) {
    with_floating(args.dtype, [&](auto tag) {
        using T = typename decltype(tag)::type;
        using A = arithmetic_t<T>;
        const T* x = static_cast<const T*>(args.x);
        A* sum = static_cast<A*>(args.sum);
        const A beta = static_cast<A>(args.beta);
        for_each_column_range(args.rows, args.columns, [&](int64_t begin, int64_t end) {
            // Blocks of rows are summed apart first: the rounding error grows with rows / block + block, not
            // rows.
            constexpr int64_t tile = 64, block = 64;
            for (int64_t c0 = begin; c0 < end; c0 += tile) {
                const int64_t width = std::min(tile, end - c0);
                A total[tile] = {};
                for (int64_t r0 = 0; r0 < args.rows; r0 += block) {
                    A part[tile] = {};
                    for (int64_t r = r0; r < std::min(args.rows, r0 + block); ++r) {
                        const T* row = x + r * args.x_stride + c0;
#pragma omp simd
                        for (int64_t c = 0; c < width; ++c) part[c] += load(row[c]);
                    }
                    for (int64_t c = 0; c < tile; ++c) total[c] += part[c];
                }
                for (int64_t c = 0; c < width; ++c)
                    sum[c0 + c] = beta == A(0) ? total[c] : beta * sum[c0 + c] + total[c];
            }
        });
    });
}

}  // namespace levin::kernels::cpu
