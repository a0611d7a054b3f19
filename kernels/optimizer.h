// AdamW and gradient norm over many tensors in one call.
#pragma once

#include "kernels/kernel.h"

namespace levin::kernels {

// One parameter: `master` is acc and holds the truth; `model` (may be nullptr) is its bf16 copy, rewritten
// after the update. grad, m, v are acc (grad bf16 with AdamW::bf16_gradients). With `remainder` the truth is
// split between model and remainder (SplitMaster), acc is f32 and master is nullptr.
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
