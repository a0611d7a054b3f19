// Kernels that touch each element once: copies, sums, activations, gated products.
#pragma once

#include "kernels/kernel.h"

namespace levin::kernels {

// x[0..count) = value
struct Fill {
    int64_t count;
    DType dtype;
    void* x;
    double value;
};
void fill(const Stream& stream, const Fill& args);

// y[r,c] = (y's type) x[r,c]; any pair of types, strided rows. Narrowing to bf16 rounds to nearest even.
struct Copy {
    int64_t rows, columns;
    DType x_dtype;
    const void* x;
    int64_t x_stride;
    DType y_dtype;
    void* y;
    int64_t y_stride;
};
void copy(const Stream& stream, const Copy& args);

// y = alpha * a + beta * b over `count` contiguous elements; y may be a or b. b == nullptr: y = alpha * a.
struct Add {
    int64_t count;
    DType dtype;
    double alpha;
    const void* a;
    double beta;
    const void* b;
    void* y;
};
void add(const Stream& stream, const Add& args);

// y = a * b elementwise, contiguous; y may be a or b.
struct Multiply {
    int64_t count;
    DType dtype;
    const void* a;
    const void* b;
    void* y;
};
void multiply(const Stream& stream, const Multiply& args);

// y[r,:] = x[r,:] + bias. bias has `dtype`. In place allowed.
struct BiasAdd {
    int64_t rows, columns;
    DType dtype;
    const void* x;
    int64_t x_stride;
    const void* bias;
    void* y;
    int64_t y_stride;
};
void bias_add(const Stream& stream, const BiasAdd& args);

// sum[c] = beta * sum[c] + sum_r x[r,c]; sum is acc (gradient of a bias). Fixed summation order.
struct ColumnSum {
    int64_t rows, columns;
    DType dtype;
    const void* x;
    int64_t x_stride;
    void* sum;
    double beta;
};
void column_sum(const Stream& stream, const ColumnSum& args);

// y = activation(x) on strided rows. `group`: the width over which Activation::exp subtracts its maximum
// (head width); columns is a multiple of it. Others ignore it. leaky_relu slope 0.01, elu alpha 1, gelu exact
// (erf).
struct ActivationForward {
    int64_t rows, columns, group;
    DType dtype;
    Activation activation;
    const void* x;
    int64_t x_stride;
    void* y;
    int64_t y_stride;
};
void activation_forward(const Stream& stream, const ActivationForward& args);

// dx = dy * activation'(x); for exp the maximum counts as a constant. dx may be dy.
struct ActivationBackward {
    int64_t rows, columns, group;
    DType dtype;
    Activation activation;
    const void* x;
    int64_t x_stride;
    const void* dy;
    int64_t dy_stride;
    void* dx;
    int64_t dx_stride;
};
void activation_backward(const Stream& stream, const ActivationBackward& args);

// GLU product: y[r,c] = activation(a[r,c]) * b[r,c] (SGLU: none; SwiGLU: silu). a and b are usually the two
// halves of one projection, hence the strides; y is contiguous [rows, columns].
struct GluForward {
    int64_t rows, columns;
    DType dtype;
    Activation activation;
    const void* a;
    int64_t a_stride;
    const void* b;
    int64_t b_stride;
    void* y;
};
void glu_forward(const Stream& stream, const GluForward& args);

// da = dy * b * activation'(a), db = dy * activation(a). da, db strided like a, b. y (may be nullptr) is
// written again where the caller dropped it and needs it for the weight gradient of the next projection.
struct GluBackward {
    int64_t rows, columns;
    DType dtype;
    Activation activation;
    const void* a;
    int64_t a_stride;
    const void* b;
    int64_t b_stride;
    const void* dy;
    void* da;
    int64_t da_stride;
    void* db;
    int64_t db_stride;
    void* y;
};
void glu_backward(const Stream& stream, const GluBackward& args);

}  // namespace levin::kernels
