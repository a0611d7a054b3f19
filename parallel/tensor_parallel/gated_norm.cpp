#include "core/ops/product.h"
#include "kernels/rank_parts.h"
#include "parallel/tensor_parallel/ops.h"

namespace levin::tensor_parallel {

using ops::add_bias;
using ops::product;
using ops::sum_rows;

namespace {

// y[r,:] = factor[r] x[r,:] + beta y[r,:]
void scale_rows(const Tensor& factor, const Tensor& x, double beta, const Tensor& y) {
    kernels::row_scale(x.stream(), {.rows = x.rows(),
                                    .columns = x.dim(-1),
                                    .dtype = x.dtype(),
                                    .factor = factor.data(),
                                    .x = x.data(),
                                    .x_stride = x.row_stride(),
                                    .beta = beta,
                                    .y = y.data(),
                                    .y_stride = y.row_stride()});
}

Tensor gated(const Tensor& o, const Tensor& u, ops::Activation gate) {
    if (!u.defined()) return o;
    Tensor g = Tensor::empty(o.shape(), o.dtype(), o.device());
    kernels::glu_forward(o.stream(), {.rows = o.rows(),
                                      .columns = o.dim(-1),
                                      .dtype = o.dtype(),
                                      .activation = gate,
                                      .a = u.data(),
                                      .a_stride = u.row_stride(),
                                      .b = o.data(),
                                      .b_stride = o.row_stride(),
                                      .y = g.data()});
    return g;
}

}  // namespace

Arriving gated_norm_row_linear(const Variable& o, const Variable& u, ops::Activation gate, double eps,
                               int64_t width, const Variable& weight, const Variable& bias,
                               const TokenShares& shares) {
    const Tensor ov = o.value().contiguous(), uv = u.defined() ? u.value() : Tensor{}, w = weight.value();
    LEVIN_CHECK(ov.dim(-1) == w.dim(1) && (!uv.defined() || uv.shape() == ov.shape()),
                "gated_norm_row_linear", "o {}, u {} and weight {} do not fit", to_string(ov.shape()),
                uv.defined() ? to_string(uv.shape()) : "-", to_string(w.shape()));
    const DType acc = accumulator_of(ov.dtype());
    const Tensor squares = shares.summand({}, acc, ov.device());
    kernels::row_squares(ov.stream(), {.rows = shares.tokens(),
                                       .columns = ov.dim(-1),
                                       .dtype = ov.dtype(),
                                       .x = ov.data(),
                                       .x_stride = ov.row_stride(),
                                       .sum = squares.data()});
    const Tensor g = gated(ov, uv, gate), part = shares.summand({w.dim(0)}, ov.dtype(), ov.device());
    InFlight sum = shares.start_sum({part, squares}, [&](int64_t first, int64_t rows) {
        product(g.narrow(0, first, rows), false, w, true, part.narrow(0, first, rows));
    });
    const Tensor y = sum[0], factor = sum[1];
    const bool has_gate = uv.defined(), has_bias = bias.defined();
    // y without bias is needed for backward.
    const Tensor result = has_bias ? Tensor::empty(y.shape(), y.dtype(), y.device()) : y;
    const auto rest = [=, b = has_bias ? bias.value() : Tensor{}]() mutable {
        const OpScope scope("gated_norm_row_linear");
        sum.wait();
        kernels::rms_factor(y.stream(), {.rows = factor.count(),
                                         .width = width,
                                         .eps = eps,
                                         .acc = acc,
                                         .sum = factor.data(),
                                         .factor = factor.data()});
        scale_rows(factor, y, 0, y);
        if (b.defined()) add_bias(y, b, result);
    };

    std::vector<Variable> inputs{o, weight};
    if (has_gate) inputs.push_back(u);
    if (has_bias) inputs.push_back(bias);
    return {
        record("gated_norm_row_linear", inputs, result,
               [ov, uv, w, factor, y, gate, width, has_gate, has_bias, shares](const Tensor& dy,
                                                                               Gradients& inputs) {
                   // With z = y / r: dz = r dy; S gets -r^3 (dy . z) / (2 width), so o gets -r^2 (dy . y) /
                   // width o.
                   const Tensor coefficient = Tensor::empty(factor.shape(), factor.dtype(), factor.device());
                   kernels::rms_factor_gradient(dy.stream(), {.rows = dy.rows(),
                                                              .columns = dy.dim(-1),
                                                              .width = width,
                                                              .dtype = dy.dtype(),
                                                              .dy = dy.data(),
                                                              .dy_stride = dy.row_stride(),
                                                              .y = y.data(),
                                                              .y_stride = y.row_stride(),
                                                              .factor = factor.data(),
                                                              .coefficient = coefficient.data()});
                   const Tensor scaled = Tensor::empty(dy.shape(), dy.dtype(), dy.device());
                   scale_rows(factor, dy, 0, scaled);
                   InFlight whole = shares.start_gather({scaled, coefficient});
                   const Tensor dg = Tensor::empty(ov.shape(), ov.dtype(), ov.device());
                   whole.each([&](int64_t first, int64_t rows) {
                       product(whole[0].narrow(0, first, rows), false, w, false, dg.narrow(0, first, rows));
                   });
                   Tensor d_o = dg, g = ov;
                   if (has_gate) {
                       d_o = Tensor::empty(ov.shape(), ov.dtype(), ov.device());
                       Tensor du = inputs.buffer(2);
                       g = Tensor::empty(ov.shape(), ov.dtype(), ov.device());
                       kernels::glu_backward(ov.stream(), {.rows = ov.rows(),
                                                           .columns = ov.dim(-1),
                                                           .dtype = ov.dtype(),
                                                           .activation = gate,
                                                           .a = uv.data(),
                                                           .a_stride = uv.row_stride(),
                                                           .b = ov.data(),
                                                           .b_stride = ov.row_stride(),
                                                           .dy = dg.data(),
                                                           .da = du.data(),
                                                           .da_stride = du.row_stride(),
                                                           .db = d_o.data(),
                                                           .db_stride = d_o.row_stride(),
                                                           .y = g.data()});
                       inputs.add(2, du);
                   }
                   scale_rows(whole[1], ov, 1, d_o);
                   inputs.add(0, d_o);
                   inputs.accumulate(
                       1, [&](Tensor& dw, double beta) { product(whole[0], true, g, false, dw, beta); },
                       Forms::either);
                   if (has_bias)
                       inputs.accumulate(has_gate ? 3 : 2,
                                         [&](Tensor& db, double beta) { sum_rows(dy, db, beta); });
               }),
        rest};
}

}  // namespace levin::tensor_parallel
