// c = op(a) op(b) + beta c on matrices of tokens; strided rows are fine.
#pragma once

#include "core/tensor.h"
#include "kernels/elementwise.h"
#include "kernels/gemm.h"

namespace levin::ops {

inline void product(const Tensor& a, bool transpose_a, const Tensor& b, bool transpose_b, const Tensor& c,
                    double beta = 0) {
    kernels::gemm(a.stream(), {.transpose_a = transpose_a,
                               .transpose_b = transpose_b,
                               .m = c.rows(),
                               .n = c.dim(-1),
                               .k = transpose_a ? a.rows() : a.dim(-1),
                               .dtype = a.dtype(),
                               .c_dtype = c.dtype(),
                               .a = a.data(),
                               .lda = a.row_stride(),
                               .b = b.data(),
                               .ldb = b.row_stride(),
                               .c = c.data(),
                               .ldc = c.row_stride(),
                               .beta = beta});
}

// x[r,:] + bias into y, which may be x.
inline void add_bias(const Tensor& x, const Tensor& bias, const Tensor& y) {
    kernels::bias_add(y.stream(), {.rows = y.rows(),
                                   .columns = y.dim(-1),
                                   .dtype = y.dtype(),
                                   .x = x.data(),
                                   .x_stride = x.row_stride(),
                                   .bias = bias.data(),
                                   .y = y.data(),
                                   .y_stride = y.row_stride()});
}

// Columns begin .. begin + count of y = x w^T + bias (undefined: none), formed where they lie in y.
inline void product_columns(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& y,
                            int64_t begin, int64_t count) {
    if (count == 0) return;
    const Tensor columns = y.narrow(-1, begin, count);
    product(x, false, w.narrow(0, begin, count), true, columns);
    if (bias.defined()) add_bias(columns, bias.narrow(0, begin, count), columns);
}

// The gradient of a bias: sum = beta * sum + sum over rows of dy.
inline void sum_rows(const Tensor& dy, const Tensor& sum, double beta) {
    kernels::column_sum(dy.stream(), {.rows = dy.rows(),
                                      .columns = dy.dim(-1),
                                      .dtype = dy.dtype(),
                                      .x = dy.data(),
                                      .x_stride = dy.row_stride(),
                                      .sum = sum.data(),
                                      .beta = beta});
}

}  // namespace levin::ops
