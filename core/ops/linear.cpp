// y = x W^T + bias: the GEMMs of the model. The weight gradient is summed by the GEMM itself, in the type
// that its memory has.
#include "core/ops.h"
#include "core/ops/product.h"

namespace levin::ops {

Variable linear(const Variable& x, const Variable& weight, const Variable& bias, FirstColumns* first) {
    const OpScope scope("linear");
    const Tensor xv = x.value(), w = weight.value();
    LEVIN_CHECK(w.rank() == 2 && xv.dim(-1) == w.dim(1) && xv.dtype() == w.dtype(), "linear",
                "x {} {} and weight {} {} do not fit", to_string(xv.dtype()), to_string(xv.shape()),
                to_string(w.dtype()), to_string(w.shape()));
    Tensor y = Tensor::empty({xv.rows(), w.dim(0)}, xv.dtype(), xv.device());
    const bool has_bias = bias.defined();
    const auto form = [xv, w, y, b = has_bias ? bias.value() : Tensor{}](int64_t begin, int64_t count) {
        product_columns(xv, w, b, y, begin, count);
    };
    if (first) {
        form(first->begin, first->count);
        first->form_rest = [form, begin = first->begin, end = first->begin + first->count, all = w.dim(0)] {
            const OpScope scope("linear");
            form(0, begin);
            form(end, all - end);
        };
    } else {
        form(0, w.dim(0));
    }

    std::vector<Variable> inputs{x, weight};
    if (has_bias) inputs.push_back(bias);
    return record(
        "linear", inputs, y, [saved = Saved(0, x, weight), w, has_bias](const Tensor& dy, Gradients& inputs) {
            if (inputs.wanted(0)) {
                Tensor dx = inputs.buffer(0);
                product(dy, false, w, false, dx);
                inputs.add(0, dx);
            }
            // `dy` by value: the product may have to wait for x.
            inputs.accumulate(
                1, saved,
                [dy](Tensor& dw, double beta, const Tensor& x) { product(dy, true, x, false, dw, beta); },
                Forms::either);
            if (has_bias) inputs.accumulate(2, [&](Tensor& db, double beta) { sum_rows(dy, db, beta); });
        });
}

}  // namespace levin::ops
