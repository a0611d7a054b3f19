// Sums, multiples and elementwise products.
#include "core/ops.h"
#include "kernels/elementwise.h"

namespace levin::ops {

namespace {

Tensor combine(const Tensor& a, double alpha, const Tensor* b, double beta) {
    Tensor y = Tensor::empty(a.shape(), a.dtype(), a.device());
    kernels::add(a.stream(), {.count = a.count(),
                              .dtype = a.dtype(),
                              .alpha = alpha,
                              .a = a.data(),
                              .beta = beta,
                              .b = b ? b->data() : nullptr,
                              .y = y.data()});
    return y;
}

Tensor product(const Tensor& a, const Tensor& b) {
    Tensor y = Tensor::empty(a.shape(), a.dtype(), a.device());
    kernels::multiply(a.stream(),
                      {.count = a.count(), .dtype = a.dtype(), .a = a.data(), .b = b.data(), .y = y.data()});
    return y;
}

void check_same(const char* op, const Variable& a, const Variable& b) {
    LEVIN_CHECK(a.shape() == b.shape() && a.dtype() == b.dtype(), op, "{} {} and {} {} differ",
                to_string(a.dtype()), to_string(a.shape()), to_string(b.dtype()), to_string(b.shape()));
}

}  // namespace

Variable add(const Variable& a, const Variable& b) {
    const OpScope scope("add");
    check_same("add", a, b);
    const Tensor left = a.value().contiguous(), right = b.value().contiguous();
    return record("add", {a, b}, combine(left, 1, &right, 1), [](const Tensor& dy, Gradients& inputs) {
        inputs.add(0, dy);
        inputs.add(1, dy);
    });
}

Variable scale(const Variable& x, double factor) {
    const OpScope scope("scale");
    return record("scale", {x}, combine(x.value().contiguous(), factor, nullptr, 0),
                  [factor](const Tensor& dy, Gradients& inputs) {
                      inputs.add(0, combine(dy.contiguous(), factor, nullptr, 0));
                  });
}

Variable multiply(const Variable& a, const Variable& b) {
    const OpScope scope("multiply");
    check_same("multiply", a, b);
    const Tensor left = a.value().contiguous(), right = b.value().contiguous();
    return record("multiply", {a, b}, product(left, right),
                  [left, right](const Tensor& dy, Gradients& inputs) {
                      const Tensor gradient = dy.contiguous();
                      if (inputs.wanted(0)) inputs.add(0, product(gradient, right));
                      if (inputs.wanted(1)) inputs.add(1, product(gradient, left));
                  });
}

}  // namespace levin::ops
