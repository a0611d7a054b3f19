// What the kernels of softmax cross-entropy share: on a whole row (cross_entropy.cu,
// sm90_bf16_cross_entropy.cu) and on one whose columns are divided over ranks (rank_parts.cu).
#pragma once

#include "kernels/cuda/row.cuh"

namespace levin::kernels::cuda {

// exp that costs one instruction where the logits have eight bits anyway.
template <class T>
__device__ inline acc_t<T> exponential(acc_t<T> x) {
    return exp(x);
}
template <>
__device__ inline float exponential<Bf16>(float x) {
    return __expf(x);
}

// The largest logit, and the sum of exp(logit - most).
template <class A>
struct SoftmaxSum {
    A most, total;
};

// That of a row, the same bits in every thread of the block. One sweep (online softmax, arXiv 1805.02867).
template <class T, int N>
__device__ inline SoftmaxSum<acc_t<T>> softmax_sum(const T* logits, int64_t vocab) {
    using A = acc_t<T>;
    A top = -INFINITY, sum = 0;
    sweep<N, kVector<T>>(vocab, [&](int64_t c, auto n) {
        constexpr int kN = decltype(n)::value;
        const auto z = load<kN>(logits + c);
        A most = z[0];
#pragma unroll
        for (int i = 1; i < kN; ++i) most = max(most, z[i]);
        if (most > top) {
            sum *= exp(top - most);
            top = most;
        }
        if (top > -INFINITY)
#pragma unroll
            for (int i = 0; i < kN; ++i) sum += exponential<T>(z[i] - top);
        else
#pragma unroll
            for (int i = 0; i < kN; ++i) sum += z[i] != z[i] ? z[i] : A(0);  // NaN is not hidden
    });
    const A most = block_max(top);
    return {most, block_sum(top > -INFINITY ? sum * exp(top - most) : sum)};
}

// Of several parts of a row, part(0) .. part(count - 1), in this order.
template <class A, class Part>
__device__ inline SoftmaxSum<A> join(int64_t count, const Part& part) {
    SoftmaxSum<A> all{-INFINITY, 0};
    for (int64_t p = 0; p < count; ++p) all.most = max(all.most, part(p).most);
    for (int64_t p = 0; p < count; ++p) {
        const SoftmaxSum<A> one = part(p);
        if (one.total != A(0)) all.total += one.total * exp(one.most - all.most);
    }
    return all;
}

// Loss and gradient of a row whose sum is known.
template <class T>
struct RowLoss {
    using A = acc_t<T>;
    A most, log_total, z_loss, scale, pull, factor;

    __device__ RowLoss(const SoftmaxSum<A>& sum, double z_loss_weight, double gradient_scale)
        : most(sum.most), log_total(log(sum.total)), z_loss(A(z_loss_weight)), scale(A(gradient_scale)) {
        pull = A(1) + A(2) * z_loss * (most + log_total);
        factor = scale * pull / sum.total;
    }
    __device__ A loss(A at_target) const {
        const A lse = most + log_total;
        return log_total - (at_target - most) + z_loss * lse * lse;
    }
    __device__ A gradient(A z) const {
        return factor * exponential<T>(z - most);  // exact shift, also far from zero
    }
    // p - 1 cancels where the model is sure; expm1 does not.
    __device__ A gradient_at_target(A z) const {
        const A log_p = z - most - log_total;
        return scale * (expm1(log_p) + (pull - A(1)) * exp(log_p));
    }
};

// The gradient of a row in the place of its `stride` logits; target may lie outside.
template <class T, int N>
__device__ inline void write_gradient(const RowLoss<T>& row, T* logits, int64_t vocab, int64_t stride,
                                      int64_t target) {
    using A = acc_t<T>;
    sweep<N, kVector<T>>(stride, [&](int64_t c, auto n) {
        constexpr int kN = decltype(n)::value;
        auto z = load<kN>(logits + c);
        const auto raw = z;
#pragma unroll
        for (int i = 0; i < kN; ++i) z[i] = row.gradient(z[i]);
        const int64_t place = target - c, inside = vocab - c;
        if (place >= 0 && place < kN)
#pragma unroll
            for (int i = 0; i < kN; ++i)
                if (i == place) z[i] = row.gradient_at_target(raw[i]);
        if (inside < kN)
#pragma unroll
            for (int i = 0; i < kN; ++i)
                if (i >= inside) z[i] = A(0);
        store<kN>(logits + c, z);
    });
}

template <class T, int N>
__device__ inline void clear_row(T* row, int64_t stride) {
    sweep<N, kVector<T>>(stride, [&](int64_t c, auto n) {
        constexpr int kN = decltype(n)::value;
        store<kN>(row + c, Pack<acc_t<T>, kN>{});
    });
}

}  // namespace levin::kernels::cuda
