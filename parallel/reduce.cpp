#include "parallel/reduce.h"

#include <algorithm>
#include <type_traits>

#include "kernels/base/parallel_for.h"

namespace levin {

namespace {

// Small enough that the running result of a block stays in the first-level cache, also in double.
constexpr int64_t kBlock = 1024;
constexpr int64_t kGrain = 64 * 1024;

template <class A>
A combine(A a, A b, ReduceOp op) {
    if (op == ReduceOp::sum) {
        if constexpr (std::is_integral_v<A>)  // wraps around instead of being undefined
            return static_cast<A>(static_cast<std::make_unsigned_t<A>>(a) +
                                  static_cast<std::make_unsigned_t<A>>(b));
        else
            return a + b;
    }
    if constexpr (!std::is_integral_v<A>) return a != a || a > b ? a : b;  // NaN wins from either side
    return a > b ? a : b;
}

template <class T, class A>
void reduce_typed(std::span<const void* const> parts, void* out, int64_t count, ReduceOp op) {
    parallel_for(count, kGrain, [&](int64_t begin, int64_t end) {
        A block[kBlock];
        for (int64_t start = begin; start < end; start += kBlock) {
            const int64_t length = std::min(kBlock, end - start);
            const T* first = static_cast<const T*>(parts[0]) + start;
            for (int64_t i = 0; i < length; ++i) block[i] = static_cast<A>(first[i]);
            for (size_t p = 1; p < parts.size(); ++p) {
                const T* part = static_cast<const T*>(parts[p]) + start;
                if (op == ReduceOp::sum)
                    for (int64_t i = 0; i < length; ++i)
                        block[i] = combine(block[i], static_cast<A>(part[i]), ReduceOp::sum);
                else
                    for (int64_t i = 0; i < length; ++i)
                        block[i] = combine(block[i], static_cast<A>(part[i]), ReduceOp::max);
            }
            T* result = static_cast<T*>(out) + start;
            for (int64_t i = 0; i < length; ++i) result[i] = static_cast<T>(block[i]);
        }
    });
}

}  // namespace

void reduce_in_rank_order(std::span<const void* const> parts, void* out, int64_t count, DType dtype,
                          ReduceOp op) {
    switch (dtype) {
        case DType::f64:
            return reduce_typed<double, double>(parts, out, count, op);
        case DType::f32:
            return reduce_typed<float, float>(parts, out, count, op);
        case DType::bf16:
            return reduce_typed<bf16, float>(parts, out, count, op);
        case DType::i64:
            return reduce_typed<int64_t, int64_t>(parts, out, count, op);
        case DType::i32:
            return reduce_typed<int32_t, int32_t>(parts, out, count, op);
        default:
            fail(Fault::internal, "reduce", "{} cannot be reduced", to_string(dtype));
    }
}

}  // namespace levin
