// Arithmetic between collectives: what a rank computes of a row, a vocabulary or a sequence that it shares
// with others, and how the parts are put together.
#pragma once

#include "kernels/kernel.h"

namespace levin::kernels {

// sum[r] = sum_c x[r,c]^2, acc. The half of a norm whose row is divided over ranks.
struct RowSquares {
    int64_t rows, columns;
    DType dtype;
    const void* x;
    int64_t x_stride;
    void* sum;
};
void row_squares(const Stream& stream, const RowSquares& args);

// factor[r] = 1 / sqrt(sum[r] / width + eps), acc; factor may be sum.
struct RmsFactor {
    int64_t rows, width;
    double eps;
    DType acc;
    const void* sum;
    void* factor;
};
void rms_factor(const Stream& stream, const RmsFactor& args);

// With y = factor * z, where factor is RmsFactor's of sum = sum of squares of some x:
//   coefficient[r] = -factor[r]^2 / width * sum_c dy[r,c] y[r,c], so that dx = coefficient * x
// dy strided; factor, coefficient acc [rows]. The gradient that reaches x through the factor.
struct RmsFactorGradient {
    int64_t rows, columns, width;
    DType dtype;
    const void* dy;
    int64_t dy_stride;
    const void* y;
    int64_t y_stride;
    const void* factor;
    void* coefficient;
};
void rms_factor_gradient(const Stream& stream, const RmsFactorGradient& args);

// y[r,:] = factor[r] * x[r,:] + beta * y[r,:]; factor acc [rows]; y may be x.
struct RowScale {
    int64_t rows, columns;
    DType dtype;
    const void* factor;
    const void* x;
    int64_t x_stride;
    double beta;
    void* y;
    int64_t y_stride;
};
void row_scale(const Stream& stream, const RowScale& args);

// Of logits whose columns are divided over ranks; this rank has columns first .. first + vocab of all.
// parts[r] = {maximum, sum exp(z - maximum), logit of targets[r]}, acc [rows, 3]; 0 for a target elsewhere or
// negative, {-inf, 0, 0} when vocab is 0 (a rank with padding only).
struct CrossEntropyParts {
    int64_t rows, vocab, first;
    DType dtype;
    const void* logits;
    int64_t stride;
    const int32_t* targets;
    void* parts;
};
void cross_entropy_parts(const Stream& stream, const CrossEntropyParts& args);

// As cross_entropy (kernels/cross_entropy.h), from the parts of all ranks, acc [ranks, rows, 3]: every rank
// gets the whole loss, and the gradient of its own columns.
struct CrossEntropyJoin {
    int64_t ranks, rows, vocab, first;
    DType dtype;
    double z_loss, gradient_scale;
    const void* parts;
    void* logits;
    int64_t stride;
    const int32_t* targets;
    void* loss;
};
void cross_entropy_join(const Stream& stream, const CrossEntropyJoin& args);

// out[s,h,:] = sum over parts p with distance[p] >= 0, ascending, of exp(-slopes[h] distance[p])
// states[p,s,h,:] States of lightning attention from other chunks of a sequence, each with the tokens
// between. states acc [parts, sequences, heads, elements], slopes f32 [heads] on the device, distance in host
// memory.
struct StateSum {
    int64_t parts, sequences, heads, elements;
    DType acc;
    const float* slopes;
    const int64_t* distance;
    const void* states;
    void* out;
};
void state_sum(const Stream& stream, const StateSum& args);

}  // namespace levin::kernels
