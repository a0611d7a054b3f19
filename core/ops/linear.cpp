// y = x W^T + bias: the GEMMs of the model. The weight gradient is summed by the GEMM itself, in the
// accumulator type.
#include "core/ops.h"
#include "kernels/elementwise.h"
#include "kernels/gemm.h"

namespace levin::ops {

Variable linear(const Variable& x, const Variable& weight, const Variable& bias) {
    const OpScope scope("linear");
    const Tensor xv = x.value(), w = weight.value();
    LEVIN_CHECK(w.rank() == 2 && xv.dim(-1) == w.dim(1) && xv.dtype() == w.dtype(), "linear",
                "x {} {} and weight {} {} do not fit", to_string(xv.dtype()), to_string(xv.shape()),
                to_string(w.dtype()), to_string(w.shape()));
    const int64_t tokens = xv.rows(), in = w.dim(1), out = w.dim(0);
    Tensor y = Tensor::empty({tokens, out}, xv.dtype(), xv.device());
    kernels::gemm(xv.stream(), {.transpose_b = true,
                                .m = tokens,
                                .n = out,
                                .k = in,
                                .dtype = xv.dtype(),
                                .c_dtype = xv.dtype(),
                                .a = xv.data(),
                                .lda = xv.row_stride(),
                                .b = w.data(),
                                .ldb = in,
                                .c = y.data(),
                                .ldc = out});
    if (bias.defined())
        kernels::bias_add(y.stream(), {.rows = tokens,
                                       .columns = out,
                                       .dtype = y.dtype(),
                                       .x = y.data(),
                                       .x_stride = out,
                                       .bias = bias.value().data(),
                                       .y = y.data(),
                                       .y_stride = out});

    std::vector<Variable> inputs{x, weight};
    const bool has_bias = bias.defined();
    if (has_bias) inputs.push_back(bias);
    return record(
        "linear", inputs, y,
        [saved = Saved(0, x, weight), w, tokens, in, out, has_bias](const Tensor& dy, Gradients& inputs) {
            if (inputs.wanted(0)) {
                Tensor dx = inputs.buffer(0);
                kernels::gemm(w.stream(), {.m = tokens,
                                           .n = in,
                                           .k = out,
                                           .dtype = w.dtype(),
                                           .c_dtype = w.dtype(),
                                           .a = dy.data(),
                                           .lda = dy.row_stride(),
                                           .b = w.data(),
                                           .ldb = in,
                                           .c = dx.data(),
                                           .ldc = dx.row_stride()});
                inputs.add(0, dx);
            }
            // `dy` by value: the product may have to wait for x.
            inputs.accumulate(1, saved, [dy, out, in, tokens](Tensor& dw, double beta, const Tensor& x) {
                kernels::gemm(x.stream(), {.transpose_a = true,
                                           .m = out,
                                           .n = in,
                                           .k = tokens,
                                           .dtype = x.dtype(),
                                           .c_dtype = dw.dtype(),
                                           .a = dy.data(),
                                           .lda = dy.row_stride(),
                                           .b = x.data(),
                                           .ldb = x.row_stride(),
                                           .c = dw.data(),
                                           .ldc = in,
                                           .beta = beta});
            });
            if (has_bias) {
                inputs.accumulate(2, [&](Tensor& db, double beta) {
                    kernels::column_sum(dy.stream(), {.rows = tokens,
                                                      .columns = out,
                                                      .dtype = dy.dtype(),
                                                      .x = dy.data(),
                                                      .x_stride = dy.row_stride(),
                                                      .sum = db.data(),
                                                      .beta = beta});
                });
            }
        });
}

}  // namespace levin::ops
