#include "core/ops.h"
#include "kernels/elementwise.h"

namespace levin::ops {

Variable activation(const Variable& x, Activation activation, int64_t group) {
    const OpScope scope("activation");
    if (activation == Activation::none) return x;
    const Tensor xv = x.value();
    const int64_t width = group > 0 ? group : xv.dim(-1);
    LEVIN_CHECK(xv.dim(-1) % width == 0, "activation", "group {} does not divide {}", width, xv.dim(-1));
    Tensor y = Tensor::empty(xv.shape(), xv.dtype(), xv.device());
    kernels::activation_forward(xv.stream(), {.rows = xv.rows(),
                                              .columns = xv.dim(-1),
                                              .group = width,
                                              .dtype = xv.dtype(),
                                              .activation = activation,
                                              .x = xv.data(),
                                              .x_stride = xv.row_stride(),
                                              .y = y.data(),
                                              .y_stride = xv.dim(-1)});
    return record("activation", {x}, y, [xv, activation, width](const Tensor& dy, Gradients& inputs) {
        Tensor dx = inputs.buffer(0);
        kernels::activation_backward(xv.stream(), {.rows = xv.rows(),
                                                   .columns = xv.dim(-1),
                                                   .group = width,
                                                   .dtype = xv.dtype(),
                                                   .activation = activation,
                                                   .x = xv.data(),
                                                   .x_stride = xv.row_stride(),
                                                   .dy = dy.data(),
                                                   .dy_stride = dy.row_stride(),
                                                   .dx = dx.data(),
                                                   .dx_stride = dx.row_stride()});
        inputs.add(0, dx);
    });
}

}  // namespace levin::ops
