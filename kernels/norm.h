// Norms with weights, for ablations and the Transformer: RMSNorm (weight) and LayerNorm (weight and bias).
#pragma once

#include "kernels/kernel.h"

namespace levin::kernels {

enum class WeightedNorm : int { rms, layer };

// rms:   y = x * rsqrt(mean(x^2) + eps) * weight
// layer: y = (x - mean(x)) * rsqrt(var(x) + eps) * weight + bias   (biased variance)
// weight, bias have `dtype`; mean (layer only, else nullptr) and rstd are acc [rows]. x, y contiguous.
struct NormForward {
    WeightedNorm kind;
    int64_t rows, width;
    double eps;
    DType dtype;
    const void* x;
    const void* weight;
    const void* bias;
    void* y;
    void* mean;
    void* rstd;
};
void norm_forward(const Stream& stream, const NormForward& args);

// dx as usual; dweight, dbias are acc [width]: written as beta * old + sum over rows, fixed order. dx may be
// dy.
struct NormBackward {
    WeightedNorm kind;
    int64_t rows, width;
    DType dtype;
    const void* x;
    const void* weight;
    const void* mean;
    const void* rstd;
    const void* dy;
    void* dx;
    void* dweight;
    void* dbias;
    double beta;
};
void norm_backward(const Stream& stream, const NormBackward& args);

}  // namespace levin::kernels
