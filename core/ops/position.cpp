// LRPE and RoPE as ops of their own. Inside lightning attention LRPE is fused; this is its composed form.
#include "kernels/position.h"

#include "core/ops.h"

namespace levin::ops {

Variable lrpe(const Variable& x, const Variable& theta, const TokenLayout& layout) {
    const OpScope scope("lrpe");
    const Tensor xv = x.value(), th = theta.value();
    const int64_t tokens = xv.rows(), heads = th.dim(0), head_dim = th.dim(1);
    LEVIN_CHECK(xv.dim(-1) == heads * head_dim && th.dtype() == accumulator_of(xv.dtype()) &&
                    tokens == layout.tokens(),
                "lrpe", "x {} and theta {} do not fit {} tokens", to_string(xv.shape()),
                to_string(th.shape()), layout.tokens());
    Tensor y = Tensor::empty({tokens, 2 * heads * head_dim}, xv.dtype(), xv.device());
    kernels::lrpe_forward(xv.stream(), {.tokens = tokens,
                                        .length = layout.length,
                                        .heads = heads,
                                        .head_dim = head_dim,
                                        .dtype = xv.dtype(),
                                        .first_position = layout.first_position,
                                        .x = xv.data(),
                                        .x_stride = xv.row_stride(),
                                        .theta = th.data(),
                                        .y = y.data()});
    return record("lrpe", {x, theta}, y,
                  [xv, th, layout, tokens, heads, head_dim](const Tensor& dy, Gradients& inputs) {
                      const Tensor gradient = dy.contiguous();
                      Tensor dx = inputs.buffer(0);
                      Tensor dtheta = Tensor::empty(th.shape(), th.dtype(), th.device());
                      kernels::lrpe_backward(xv.stream(), {.tokens = tokens,
                                                           .length = layout.length,
                                                           .heads = heads,
                                                           .head_dim = head_dim,
                                                           .dtype = xv.dtype(),
                                                           .first_position = layout.first_position,
                                                           .x = xv.data(),
                                                           .x_stride = xv.row_stride(),
                                                           .theta = th.data(),
                                                           .dy = gradient.data(),
                                                           .dx = dx.data(),
                                                           .dx_stride = dx.row_stride(),
                                                           .dtheta = dtheta.data(),
                                                           .beta = 0});
                      inputs.add(0, dx);
                      inputs.add(1, dtheta);
                  });
}

namespace {

void turn(const Tensor& x, int64_t heads, double base, const TokenLayout& layout, bool inverse, Tensor y) {
    kernels::rope(x.stream(), {.tokens = x.rows(),
                               .length = layout.length,
                               .heads = heads,
                               .head_dim = x.dim(-1) / heads,
                               .dtype = x.dtype(),
                               .first_position = layout.first_position,
                               .base = base,
                               .inverse = inverse,
                               .x = x.data(),
                               .x_stride = x.row_stride(),
                               .y = y.data(),
                               .y_stride = y.row_stride()});
}

}  // namespace

Variable rope(const Variable& x, int64_t heads, double base, const TokenLayout& layout) {
    const OpScope scope("rope");
    const Tensor& xv = x.value();
    LEVIN_CHECK(xv.dim(-1) % (2 * heads) == 0, "rope", "width {} is no {} heads of even width", xv.dim(-1),
                heads);
    Tensor y = Tensor::empty(xv.shape(), xv.dtype(), xv.device());
    turn(xv, heads, base, layout, false, y);
    return record("rope", {x}, y, [heads, base, layout](const Tensor& dy, Gradients& inputs) {
        Tensor dx = inputs.buffer(0);
        turn(dy, heads, base, layout, true, dx);
        inputs.add(0, dx);
    });
}

}  // namespace levin::ops
