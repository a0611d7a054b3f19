#include "core/ops/product.h"
#include "parallel/tensor_parallel/ops.h"

namespace levin::tensor_parallel {

using ops::add_bias;
using ops::product;
using ops::product_columns;
using ops::sum_rows;

namespace {

void check(const char* op, const Tensor& x, const Tensor& w) {
    LEVIN_CHECK(w.rank() == 2 && x.dim(-1) == w.dim(1) && x.dtype() == w.dtype(), op,
                "x {} {} and weight {} {} do not fit", to_string(x.dtype()), to_string(x.shape()),
                to_string(w.dtype()), to_string(w.shape()));
}

std::vector<Variable> inputs_of(const Variable& x, const Variable& weight, const Variable& bias) {
    std::vector<Variable> inputs{x, weight};
    if (bias.defined()) inputs.push_back(bias);
    return inputs;
}

}  // namespace

Variable column_linear(const Variable& x, const Variable& weight, const Variable& bias,
                       const TokenShares& shares, ops::FirstColumns* first) {
    const Tensor xv = x.value().contiguous(), w = weight.value();
    check("column_linear", xv, w);
    Tensor y = Tensor::empty({shares.tokens(), w.dim(0)}, xv.dtype(), xv.device());
    InFlight whole = shares.start_gather({xv});
    const bool has_bias = bias.defined();
    const auto form = [w, y, b = has_bias ? bias.value() : Tensor{}](const Tensor& x_rows, int64_t row,
                                                                     int64_t begin, int64_t count) {
        product_columns(x_rows, w, b, y.narrow(0, row, x_rows.rows()), begin, count);
    };
    const int64_t begin = first ? first->begin : 0, end = begin + (first ? first->count : w.dim(0));
    whole.each(
        [&](int64_t row, int64_t rows) { form(whole[0].narrow(0, row, rows), row, begin, end - begin); });
    if (first)
        first->form_rest = [=, all = whole[0].narrow(0, 0, shares.tokens()), width = w.dim(0)] {
            const OpScope scope("column_linear");
            form(all, 0, 0, begin);
            form(all, 0, end, width - end);
        };
    // x is kept, also with selective recomputation: formed again it would come after the sum of dx, and the
    // weight gradient could not hide it.
    return record("column_linear", inputs_of(x, weight, bias), y,
                  [xv, w, has_bias, shares](const Tensor& dy, Gradients& inputs) {
                      // x travels while dx is formed, and dx while the weight gradient is.
                      InFlight whole, dx;
                      if (inputs.wanted(1)) whole = shares.start_gather({xv});
                      if (inputs.wanted(0)) {
                          const Tensor part = shares.summand({w.dim(1)}, dy.dtype(), dy.device());
                          dx = shares.start_sum({part}, [&](int64_t first, int64_t rows) {
                              product(dy.narrow(0, first, rows), false, w, false,
                                      part.narrow(0, first, rows));
                          });
                      }
                      inputs.accumulate(
                          1,
                          [&](Tensor& dw, double beta) {
                              whole.wait();
                              product(dy, true, whole[0], false, dw, beta);
                          },
                          Forms::either);
                      if (has_bias)
                          inputs.accumulate(2, [&](Tensor& db, double beta) { sum_rows(dy, db, beta); });
                      if (!inputs.wanted(0)) return;
                      dx.wait();
                      inputs.add(0, dx[0]);
                  });
}

Arriving row_linear(const Variable& x, const Variable& weight, const Variable& bias,
                    const TokenShares& shares) {
    const Tensor xv = x.value(), w = weight.value();
    check("row_linear", xv, w);
    const Tensor part = shares.summand({w.dim(0)}, xv.dtype(), xv.device());
    InFlight sum = shares.start_sum({part}, [&](int64_t first, int64_t rows) {
        product(xv.narrow(0, first, rows), false, w, true, part.narrow(0, first, rows));
    });
    const Tensor y = sum[0];
    const bool has_bias = bias.defined();
    const auto rest = [sum, y, b = has_bias ? bias.value() : Tensor{}]() mutable {
        const OpScope scope("row_linear");
        sum.wait();
        if (b.defined()) add_bias(y, b, y);
    };
    return {record("row_linear", inputs_of(x, weight, bias), y,
                   [saved = Saved(0, x, weight), w, has_bias, shares](const Tensor& dy, Gradients& inputs) {
                       InFlight whole = shares.start_gather({dy.contiguous()});
                       Tensor dx = inputs.wanted(0) ? inputs.buffer(0) : Tensor{};
                       whole.each([&](int64_t first, int64_t rows) {
                           if (dx.defined())
                               product(whole[0].narrow(0, first, rows), false, w, false,
                                       dx.narrow(0, first, rows));
                       });
                       if (dx.defined()) inputs.add(0, dx);
                       // By value: the product may have to wait for x.
                       inputs.accumulate(
                           1, saved,
                           [dy = whole[0]](Tensor& dw, double beta, const Tensor& x) {
                               product(dy, true, x, false, dw, beta);
                           },
                           Forms::either);
                       if (has_bias)
                           inputs.accumulate(2, [&](Tensor& db, double beta) { sum_rows(dy, db, beta); });
                   }),
            rest};
}

Variable enter(const Variable& x, const TokenShares& shares) {
    InFlight whole = shares.start_gather({x.value().contiguous()});
    whole.wait();
    return record("enter", {x}, whole[0], [shares](const Tensor& dy, Gradients& inputs) {
        const Tensor part = shares.summand({dy.dim(-1)}, dy.dtype(), dy.device());  // dy may be a buffer
        InFlight dx = shares.start_sum({part}, [&](int64_t first, int64_t rows) {
            part.narrow(0, first, rows).copy_from(dy.narrow(0, first, rows));
        });
        dx.wait();
        inputs.add(0, dx[0]);
    });
}

}  // namespace levin::tensor_parallel
