// SimpleRMSNorm, the norm of TransNormerLLM: y = x * rsqrt(mean(x^2) + eps), no weight (arXiv 2307.14995).
// Statistics in acc whatever the element type.
#pragma once

#include "kernels/kernel.h"

namespace levin::kernels {

// If `branch` is given, first h = x + branch (rounded to dtype) is written to `h` and normed in place of x.
// h may be x. rstd is acc [rows]. y == nullptr writes only h and rstd.
struct SrmsNormForward {
    int64_t rows, width;
    double eps;
    DType dtype;
    const void* x;
    int64_t x_stride;
    const void* branch;
    void* h;
    void* y;
    void* rstd;
};
void srms_norm_forward(const Stream& stream, const SrmsNormForward& args);

// dx = (dy - y * mean(y * dy)) * rstd with y = x * rstd formed again from x. residual_grad (may be nullptr)
// is added: dx += residual_grad, the gradient that reached h past this norm. dx may be dy or residual_grad. y
// (may be nullptr), contiguous, is written again where the caller dropped it; the same bits as forward gave.
struct SrmsNormBackward {
    int64_t rows, width;
    DType dtype;
    const void* x;
    int64_t x_stride;
    const void* rstd;
    const void* dy;
    const void* residual_grad;
    void* dx;
    int64_t dx_stride;
    void* y = nullptr;
};
void srms_norm_backward(const Stream& stream, const SrmsNormBackward& args);

// Gate times norm, after attention: y = g(u) * (o * rstd(o)); g is none (TNL: u as it is) or sigmoid (TNL3).
// o and y contiguous [rows, width]; u strided (a quarter of the qkvu projection).
struct GatedSrmsNormForward {
    int64_t rows, width;
    double eps;
    DType dtype;
    Activation gate;
    const void* o;
    const void* u;
    int64_t u_stride;
    void* y;
    void* rstd;
};
void gated_srms_norm_forward(const Stream& stream, const GatedSrmsNormForward& args);

// With n = o * rstd: du = dy * n * g'(u); dn = dy * g(u); do = (dn - n * mean(n * dn)) * rstd. y (may be
// nullptr) is written again where the caller dropped it. du strided.
struct GatedSrmsNormBackward {
    int64_t rows, width;
    DType dtype;
    Activation gate;
    const void* o;
    const void* u;
    int64_t u_stride;
    const void* rstd;
    const void* dy;
    void* d_o;
    void* du;
    int64_t du_stride;
    void* y;
};
void gated_srms_norm_backward(const Stream& stream, const GatedSrmsNormBackward& args);

}  // namespace levin::kernels
