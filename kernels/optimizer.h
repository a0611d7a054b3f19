// AdamW and gradient norm over many tensors in one call.
#pragma once

#include "kernels/kernel.h"

namespace levin::kernels {

// One parameter: `master` is acc and holds the truth; `model` (may be nullptr) is its bf16 copy, rewritten
// after the update. grad, m, v are acc.
struct AdamWTensor {
    int64_t count;
    void* master;
    void* model;
    const void* grad;
    void* m;
    void* v;
    double weight_decay;
};

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
