#include "core/ops/product.h"
#include "parallel/tensor_parallel/ops.h"

namespace levin::tensor_parallel {

using ops::add_bias;
using ops::product;
using ops::sum_rows;

namespace {

Tensor forward(const char* op, const Tensor& x, const Tensor& w) {
    LEVIN_CHECK(w.rank() == 2 && x.dim(-1) == w.dim(1) && x.dtype() == w.dtype(), op,
                "x {} {} and weight {} {} do not fit", to_string(x.dtype()), to_string(x.shape()),
                to_string(w.dtype()), to_string(w.shape()));
    Tensor y = Tensor::empty({x.rows(), w.dim(0)}, x.dtype(), x.device());
    product(x, false, w, true, y);
    return y;
}

std::vector<Variable> inputs_of(const Variable& x, const Variable& weight, const Variable& bias) {
    std::vector<Variable> inputs{x, weight};
    if (bias.defined()) inputs.push_back(bias);
    return inputs;
}

}  // namespace

Variable column_linear(const Variable& x, const Variable& weight, const Variable& bias, const Ranks& ranks) {
    const Tensor xv = x.value(), w = weight.value();
    Tensor y = forward("column_linear", xv, w);
    const bool has_bias = bias.defined();
    if (has_bias) add_bias(y, bias.value(), y);
    // x is kept, also with selective recomputation: formed again it would come after the sum of dx, and the
    // weight gradient could not hide it.
    return record("column_linear", inputs_of(x, weight, bias), y,
                  [xv, w, has_bias, ranks](const Tensor& dy, Gradients& inputs) {
                      Tensor dx;
                      Pending sum;
                      if (inputs.wanted(0)) {
                          dx = Tensor::empty({dy.rows(), w.dim(1)}, dy.dtype(), dy.device());
                          product(dy, false, w, false, dx);
                          sum = ranks->start_all_reduce(dx);
                      }
                      if (inputs.wanted(1))
                          inputs.accumulate(
                              1, [&](Tensor& dw, double beta) { product(dy, true, xv, false, dw, beta); });
                      if (has_bias)
                          inputs.accumulate(2, [&](Tensor& db, double beta) { sum_rows(dy, db, beta); });
                      if (!sum) return;
                      sum->wait();
                      inputs.add(0, dx);
                  });
}

Variable row_linear(const Variable& x, const Variable& weight, const Variable& bias, const Ranks& ranks) {
    const Tensor w = weight.value();
    Tensor y = forward("row_linear", x.value(), w);
    ranks->all_reduce(y);
    const bool has_bias = bias.defined();
    if (has_bias) add_bias(y, bias.value(), y);
    return record("row_linear", inputs_of(x, weight, bias), y,
                  [saved = Saved(0, x, weight), w, has_bias](const Tensor& dy, Gradients& inputs) {
                      if (inputs.wanted(0)) {
                          Tensor dx = inputs.buffer(0);
                          product(dy, false, w, false, dx);
                          inputs.add(0, dx);
                      }
                      // `dy` by value: the product may have to wait for x.
                      inputs.accumulate(1, saved, [dy](Tensor& dw, double beta, const Tensor& x) {
                          product(dy, true, x, false, dw, beta);
                      });
                      if (has_bias)
                          inputs.accumulate(2, [&](Tensor& db, double beta) { sum_rows(dy, db, beta); });
                  });
}

Variable enter(const Variable& x, const Ranks& ranks) {
    return record("enter", {x}, x.value(), [ranks](const Tensor& dy, Gradients& inputs) {
        Tensor dx = dy.is_contiguous() ? dy.clone() : dy.contiguous();  // dy may be somebody's buffer
        ranks->all_reduce(dx);
        inputs.add(0, dx);
    });
}

}  // namespace levin::tensor_parallel
