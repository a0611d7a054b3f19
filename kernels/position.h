// Position encodings. A token's position is first_position + t % length.
// Angles are exact to 1e-5 rad at any position up to 2^40: theta * t is reduced in float64, never in float32.
#pragma once

#include "kernels/kernel.h"

namespace levin::kernels {

// LRPE (TransNormerLLM): y = concat[x cos(theta t), x sin(theta t)] per head: [tokens, heads, head_dim] ->
// [tokens, heads, 2 head_dim]. x strided by token, y contiguous. theta acc [heads, head_dim].
struct LrpeForward {
    int64_t tokens, length, heads, head_dim;
    DType dtype;
    int64_t first_position;
    const void* x;
    int64_t x_stride;
    const void* theta;
    void* y;
};
void lrpe_forward(const Stream& stream, const LrpeForward& args);

// dx = dy_c cos + dy_s sin; dtheta (acc, [heads, head_dim]) = beta * dtheta + sum_t t x (dy_s cos - dy_c
// sin), fixed order.
struct LrpeBackward {
    int64_t tokens, length, heads, head_dim;
    DType dtype;
    int64_t first_position;
    const void* x;
    int64_t x_stride;
    const void* theta;
    const void* dy;
    void* dx;
    int64_t dx_stride;
    void* dtheta;
    double beta;
};
void lrpe_backward(const Stream& stream, const LrpeBackward& args);

// RoPE, the half-split form of LLaMA checkpoints: pairs (c, c + head_dim/2), angle t * base^(-2c/head_dim).
// inverse = true turns the other way (backward). x and y strided; y may be x.
struct Rope {
    int64_t tokens, length, heads, head_dim;
    DType dtype;
    int64_t first_position;
    double base;
    bool inverse;
    const void* x;
    int64_t x_stride;
    void* y;
    int64_t y_stride;
};
void rope(const Stream& stream, const Rope& args);

}  // namespace levin::kernels
