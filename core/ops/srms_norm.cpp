// SimpleRMSNorm and its two fused forms. This file is the pattern for every op: check shapes, allocate, call
// a kernel, record() with a lambda whose captures are exactly what backward needs.
#include "kernels/srms_norm.h"

#include "core/ops.h"

namespace levin::ops {

namespace {

Tensor empty_rstd(const Tensor& x) {
    return Tensor::empty({x.rows()}, accumulator_of(x.dtype()), x.device());
}

// dx of y = srms_norm(x), plus the gradient that reached x on another way. Where a consumer waits for output
// number `output`, y is formed again.
void backward_into(const Tensor& x, const Tensor& rstd, const Tensor& dy, const Tensor& residual_gradient,
                   Tensor dx, Gradients& sink, size_t output) {
    Tensor y;
    if (sink.value_wanted(output)) y = Tensor::empty(x.shape(), x.dtype(), x.device());
    kernels::srms_norm_backward(
        x.stream(), {.rows = x.rows(),
                     .width = x.dim(-1),
                     .dtype = x.dtype(),
                     .x = x.data(),
                     .x_stride = x.row_stride(),
                     .rstd = rstd.data(),
                     .dy = dy.data(),
                     .residual_grad = residual_gradient.defined() ? residual_gradient.data() : nullptr,
                     .dx = dx.data(),
                     .dx_stride = dx.row_stride(),
                     .y = y.defined() ? y.data() : nullptr});
    if (y.defined()) sink.give_value(output, y);
}

Tensor forward(const Tensor& x, double eps, const Tensor* branch, Tensor* h, Tensor& rstd) {
    Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
    kernels::srms_norm_forward(x.stream(), {.rows = x.rows(),
                                            .width = x.dim(-1),
                                            .eps = eps,
                                            .dtype = x.dtype(),
                                            .x = x.data(),
                                            .x_stride = x.row_stride(),
                                            .branch = branch ? branch->data() : nullptr,
                                            .h = h ? h->data() : nullptr,
                                            .y = y.data(),
                                            .rstd = rstd.data()});
    return y;
}

}  // namespace

Variable srms_norm(const Variable& x, double eps) {
    const OpScope scope("srms_norm");
    const Tensor value = x.value();
    Tensor rstd = empty_rstd(value);
    Variable y = record("srms_norm", {x}, forward(value, eps, nullptr, nullptr, rstd),
                        [value, rstd](const Tensor& dy, Gradients& inputs) {
                            Tensor dx = inputs.buffer(0);
                            backward_into(value, rstd, dy.contiguous(), {}, dx, inputs, 0);
                            inputs.add(0, dx);
                        });
    y.set_formed_again();
    return y;
}

std::pair<Variable, Variable> add_srms_norm(const Variable& x, const Variable& branch, double eps) {
    const OpScope scope("add_srms_norm");
    const Tensor a = x.value().contiguous();
    const bool has_branch = branch.defined();
    std::vector<Variable> inputs{x};
    Tensor h = a, y, rstd = empty_rstd(a);
    if (has_branch) {
        const Tensor b = branch.value().contiguous();
        LEVIN_CHECK(a.shape() == b.shape() && a.dtype() == b.dtype(), "add_srms_norm",
                    "x {} and branch {} differ", to_string(a.shape()), to_string(b.shape()));
        inputs.push_back(branch);
        h = Tensor::empty(a.shape(), a.dtype(), a.device());
        y = forward(a, eps, &b, &h, rstd);
    } else {
        y = forward(a, eps, nullptr, nullptr, rstd);
    }
    auto results =
        record("add_srms_norm", std::move(inputs), std::vector<Tensor>{h, y},
               [h, rstd, has_branch](std::span<const Tensor> gradients, Gradients& inputs) {
                   Tensor dx = gradients[0].defined() ? gradients[0].contiguous() : Tensor{};  // as far as h
                   if (gradients[1].defined()) {
                       const Tensor dh = dx;
                       dx = Tensor::empty(h.shape(), h.dtype(), h.device());
                       backward_into(h, rstd, gradients[1].contiguous(), dh, dx, inputs, 1);
                   }
                   inputs.add(0, dx);
                   if (has_branch) inputs.add(1, dx);
               });
    results[1].set_formed_again();
    return {results[0], results[1]};
}

Variable gated_srms_norm(const Variable& o, const Variable& u, Activation gate, double eps) {
    const OpScope scope("gated_srms_norm");
    const Tensor ov = o.value().contiguous(), uv = u.value();
    LEVIN_CHECK(ov.shape() == uv.shape(), "gated_srms_norm", "o {} and u {} differ", to_string(ov.shape()),
                to_string(uv.shape()));
    Tensor rstd = empty_rstd(ov);
    Tensor product = Tensor::empty(ov.shape(), ov.dtype(), ov.device());
    kernels::gated_srms_norm_forward(ov.stream(), {.rows = ov.rows(),
                                                   .width = ov.dim(-1),
                                                   .eps = eps,
                                                   .dtype = ov.dtype(),
                                                   .gate = gate,
                                                   .o = ov.data(),
                                                   .u = uv.data(),
                                                   .u_stride = uv.row_stride(),
                                                   .y = product.data(),
                                                   .rstd = rstd.data()});
    Variable y =
        record("gated_srms_norm", {o, u}, product, [ov, uv, rstd, gate](const Tensor& dy, Gradients& inputs) {
            Tensor d_o = Tensor::empty(ov.shape(), ov.dtype(), ov.device());
            Tensor du = inputs.buffer(1), again;
            if (inputs.value_wanted(0)) again = Tensor::empty(ov.shape(), ov.dtype(), ov.device());
            const Tensor gradient = dy.contiguous();
            kernels::gated_srms_norm_backward(ov.stream(), {.rows = ov.rows(),
                                                            .width = ov.dim(-1),
                                                            .dtype = ov.dtype(),
                                                            .gate = gate,
                                                            .o = ov.data(),
                                                            .u = uv.data(),
                                                            .u_stride = uv.row_stride(),
                                                            .rstd = rstd.data(),
                                                            .dy = gradient.data(),
                                                            .d_o = d_o.data(),
                                                            .du = du.data(),
                                                            .du_stride = du.row_stride(),
                                                            .y = again.defined() ? again.data() : nullptr});
            if (again.defined()) inputs.give_value(0, again);
            inputs.add(0, d_o);
            inputs.add(1, du);
        });
    y.set_formed_again();
    return y;
}

}  // namespace levin::ops
