// AdamW and gradient norm over many tensors in one call.
#pragma once

#include "kernels/kernel.h"

namespace levin::kernels {

// One parameter: `master` is acc and holds the truth; `model` (may be nullptr) is its bf16 copy, rewritten
// after the update. grad, m, v are acc (grad bf16 with AdamW::bf16_gradients, m and v with AdamW::rounding).
// With `remainder` the truth is split between model and remainder (SplitMaster), acc is f32 and master is
// nullptr.
struct AdamWTensor {
    int64_t count;
    void* master;
    void* model;
    const void* grad;
    void* m;
    void* v;
    double weight_decay;
    uint16_t* remainder = nullptr;
};

// An f32 master in 4 bytes with its bf16 copy (instead of 6): `model` is the master rounded to the nearest
// bf16, ties away from zero, and `remainder` its lower 16 bits; a remainder of 0x8000 or more tells that the
// upper ones were rounded up. Exact for every number; every NaN comes back as one. (Ties to even would not
// do: an even bf16 would stand for 65537 masters.)
struct SplitMaster {
    int64_t count;
    float* master;
    void* model;
    uint16_t* remainder;
    bool join;  // false: model and remainder from master; true: master from them
};
void split_master(const Stream& stream, const SplitMaster& args);

// The two directions on bits.
#ifdef __CUDACC__
#define LEVIN_HOST_DEVICE __host__ __device__
#else
#define LEVIN_HOST_DEVICE
#endif
LEVIN_HOST_DEVICE inline uint32_t join_bits(uint16_t model, uint16_t remainder) {
    const uint32_t upper = static_cast<uint16_t>(model - (remainder >> 15));
    return upper << 16 | remainder;
}
LEVIN_HOST_DEVICE inline void split_bits(uint32_t master, uint16_t* model, uint16_t* remainder) {
    const bool is_nan = (master & 0x7fffffffu) > 0x7f800000u;
    *model = static_cast<uint16_t>(is_nan ? 0x7fffu : (master + 0x8000u) >> 16);
    *remainder = static_cast<uint16_t>(is_nan ? 0 : master);
}

// How the moments of a tensor, kept in bf16, are rounded: up with the probability that makes the mean exact,
// by a function of key and number of an element alone. Rounded to nearest, a second moment could not fall:
// with beta2 0.999 a step changes it by less than half of bf16's spacing. Element i has number first + i +
// (column + i) / columns * gap in the whole parameter (columns > 0): the tensor's rows of `columns` elements,
// of which element 0 has place `column`, lie `gap` numbers apart there.
struct MomentRounding {
    uint32_t key[2];  // random words that differ from parameter to parameter and from step to step
    int64_t first = 0, column = 0, columns = 1, gap = 0;
};
LEVIN_HOST_DEVICE inline uint64_t number_of(const MomentRounding& rounding, int64_t i) {
    return static_cast<uint64_t>(rounding.first + i +
                                 (rounding.column + i) / rounding.columns * rounding.gap);
}

// 32 random bits of an element; the lower 16 are the first moment's, the upper the second's. Two rounds of
// multiplying by an odd constant and folding the upper bits in, with a word of the key before each, so that
// steps have bits of their own and not each other's at other places.
LEVIN_HOST_DEVICE inline uint32_t rounding_bits(uint64_t number, uint32_t key, uint32_t other_key) {
    uint32_t x = static_cast<uint32_t>(number) + key;
    x = (x ^ x >> 16) * 0x7feb352du;
    x ^= x >> 15;
    x += other_key + static_cast<uint32_t>(number >> 32) * 0x9e3779b9u;
    x *= 0x846ca68bu;
    return x ^ x >> 16;
}
// A float's bits to one of the two neighbours in bf16; `random` is below 2^16. What bf16 has stays,
// infinities too; NaN stays NaN.
LEVIN_HOST_DEVICE inline uint16_t round_at_random(uint32_t bits, uint32_t random) {
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return static_cast<uint16_t>(is_nan ? 0x7fffu : (bits + random) >> 16);
}

// g = grad * grad_scale;  m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2;
// w -= lr * (m / (1 - b1^step) / (sqrt(v / (1 - b2^step)) + eps) + weight_decay * w)      (decoupled, w
// before the update) acc is f32 or f64 for all tensors. step counts from 1. `grad_scale` is read from
// *grad_scale_pointer when that is not nullptr (acc, on the stream's device: the clip factor, so that no host
// synchronisation is needed), else it is 1.
struct AdamW {
    int64_t tensors;
    const AdamWTensor* list;  // host memory
    DType acc;
    double learning_rate, beta1, beta2, eps;
    int64_t step;
    const void* grad_scale_pointer;
    bool bf16_gradients = false;  // acc is f32 then: the same results as from these gradients in f32
    // One a tensor, host memory: m and v are bf16, acc is f32. The new master comes from the moments before
    // they are rounded.
    const MomentRounding* rounding = nullptr;
};
void adamw(const Stream& stream, const AdamW& args);

// *out (f64, on the stream's device) = sum over tensors of sum of squares, in float64, fixed order.
struct SumOfSquares {
    int64_t tensors;
    const void* const* list;
    const int64_t* counts;
    DType dtype;
    double* out;
};
void sum_of_squares(const Stream& stream, const SumOfSquares& args);

// From *sum (f64): norm = sqrt(*sum); *grad_norm (f64) = norm; *grad_scale (acc) = max_norm > 0 ?
// min(1, max_norm / (norm + 1e-6)) : 1. All on the stream's device.
struct ClipScale {
    const double* sum;
    double max_norm;
    double* grad_norm;
    DType acc;
    void* grad_scale;
};
void clip_scale(const Stream& stream, const ClipScale& args);

}  // namespace levin::kernels
