#include "kernels/optimizer.h"

#include <bit>
#include <type_traits>
#include <vector>

#include "kernels/backends.h"
#include "kernels/cpu/activation.h"
#include "kernels/cpu/loops.h"

namespace levin::kernels::cpu {
namespace {

// A piece of one tensor. Pieces are cut by the sizes of the tensors alone.
struct Piece {
    int64_t tensor, begin, end;
};
template <class Count>
std::vector<Piece> pieces(int64_t tensors, const Count& count) {
    constexpr int64_t length = 16384;
    std::vector<Piece> list;
    for (int64_t t = 0; t < tensors; ++t)
        for (int64_t begin = 0; begin < count(t); begin += length)
            list.push_back({t, begin, std::min(count(t), begin + length)});
    return list;
}

template <class A>
void store_moment(A* to, A value, uint32_t) {
    *to = value;
}
inline void store_moment(bf16* to, float value, uint32_t random) {
    to->bits = round_at_random(std::bit_cast<uint32_t>(value), random);
}

// Gradients of type G, moments of type M.
template <class A, class G, class M>
void adamw_piece(const AdamW& args, const AdamWTensor& tensor, const MomentRounding& rounding, A grad_scale,
                 int64_t begin, int64_t end) {
    A* w = static_cast<A*>(tensor.master);
    M* m = static_cast<M*>(tensor.m);
    M* v = static_cast<M*>(tensor.v);
    const G* grad = static_cast<const G*>(tensor.grad);
    const double step = static_cast<double>(args.step);
    const A b1 = static_cast<A>(args.beta1), b2 = static_cast<A>(args.beta2);
    const A rest1 = static_cast<A>(1 - args.beta1), rest2 = static_cast<A>(1 - args.beta2);
    const A correct1 = static_cast<A>(1 / (1 - std::pow(args.beta1, step)));
    const A correct2 = static_cast<A>(1 / (1 - std::pow(args.beta2, step)));
    const A lr = static_cast<A>(args.learning_rate), eps = static_cast<A>(args.eps);
    const A decay = static_cast<A>(tensor.weight_decay);
    const uint64_t first = number_of(rounding, begin);
    const auto update = [&](int64_t i, A w) __attribute__((always_inline)) {
        const A g = load(grad[i]) * grad_scale;
        const A new_m = b1 * load(m[i]) + rest1 * g, new_v = b2 * load(v[i]) + rest2 * (g * g);
        uint32_t random = 0;
        if constexpr (!std::is_same_v<A, M>)
            random =
                rounding_bits(first + static_cast<uint64_t>(i - begin), rounding.key[0], rounding.key[1]);
        store_moment(m + i, new_m, random & 0xffffu);
        store_moment(v + i, new_v, random >> 16);
        return w - lr * (new_m * correct1 / (std::sqrt(new_v * correct2) + eps) + decay * w);
    };
    if constexpr (std::is_same_v<A, float>)
        if (tensor.remainder) {
            auto* upper = static_cast<uint16_t*>(tensor.model);
#pragma omp simd
            for (int64_t i = begin; i < end; ++i)
                split_bits(std::bit_cast<uint32_t>(
                               update(i, std::bit_cast<float>(join_bits(upper[i], tensor.remainder[i])))),
                           upper + i, tensor.remainder + i);
            return;
        }
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) w[i] = update(i, w[i]);
    if (!tensor.model) return;
    bf16* model = static_cast<bf16*>(tensor.model);
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) model[i] = narrow<bf16>(static_cast<float>(w[i]));
}

template <class A, class G, class M>
void adamw_all(const AdamW& args) {
    const A grad_scale = args.grad_scale_pointer ? *static_cast<const A*>(args.grad_scale_pointer) : A(1);
    const auto list = pieces(args.tensors, [&](int64_t t) { return args.list[t].count; });
    parallel_for(static_cast<int64_t>(list.size()), 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const Piece& piece = list[static_cast<size_t>(i)];
            const MomentRounding rounding = args.rounding ? args.rounding[piece.tensor] : MomentRounding{};
            // Where rows lie apart, one at a time: the numbers of its elements follow each other.
            for (int64_t from = piece.begin, to; from < piece.end; from = to) {
                to = piece.end;
                if (rounding.gap != 0)
                    to = std::min(to, from + rounding.columns - (rounding.column + from) % rounding.columns);
                adamw_piece<A, G, M>(args, args.list[piece.tensor], rounding, grad_scale, from, to);
            }
        }
    });
}

template <class T>
double squares(const T* x, int64_t begin, int64_t end) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = begin; i < end; ++i) {
        const double value = static_cast<double>(load(x[i]));
        sum += value * value;
    }
    return sum;
}

}  // namespace

void adamw(const AdamW& args) {
    LEVIN_CHECK(args.acc == DType::f64 || args.acc == DType::f32, "adamw", "acc is {}, expected f64 or f32",
                to_string(args.acc));
    LEVIN_CHECK(!args.bf16_gradients || args.acc == DType::f32, "adamw", "bf16 gradients with acc {}",
                to_string(args.acc));
    LEVIN_CHECK(!args.rounding || args.acc == DType::f32, "adamw", "bf16 moments with acc {}, expected f32",
                to_string(args.acc));
    const auto with_moments = [&](auto m) {
        using M = decltype(m);
        if (args.bf16_gradients)
            adamw_all<float, bf16, M>(args);
        else
            adamw_all<float, float, M>(args);
    };
    if (args.acc == DType::f64)
        adamw_all<double, double, double>(args);
    else if (args.rounding)
        with_moments(bf16{});
    else
        with_moments(float{});
}

void split_master(const SplitMaster& args) {
    auto* model = static_cast<uint16_t*>(args.model);
    parallel_for(args.count, kGrain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
            if (args.join)
                args.master[i] = std::bit_cast<float>(join_bits(model[i], args.remainder[i]));
            else
                split_bits(std::bit_cast<uint32_t>(args.master[i]), model + i, args.remainder + i);
    });
}

void sum_of_squares(const SumOfSquares& args) {
    const auto list = pieces(args.tensors, [&](int64_t t) { return args.counts[t]; });
    std::vector<double> parts(list.size());
    with_floating(args.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        parallel_for(static_cast<int64_t>(list.size()), 1, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                const Piece& piece = list[static_cast<size_t>(i)];
                parts[static_cast<size_t>(i)] =
                    squares(static_cast<const T*>(args.list[piece.tensor]), piece.begin, piece.end);
            }
        });
    });
    double sum = 0;
    for (const double part : parts) sum += part;  // in order: the same bits at any number of threads
    *args.out = sum;
}

void clip_scale(const ClipScale& args) {
    const double norm = std::sqrt(*args.sum);
    *args.grad_norm = norm;
    const double scale = args.max_norm > 0 ? std::min(1.0, args.max_norm / (norm + 1e-6)) : 1.0;
    if (args.acc == DType::f64)
        *static_cast<double*>(args.grad_scale) = scale;
    else
        *static_cast<float*>(args.grad_scale) = static_cast<float>(scale);
}

}  // namespace levin::kernels::cpu
