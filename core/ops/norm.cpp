// RMSNorm and LayerNorm with weights: ablations and the Transformer.
#include "kernels/norm.h"

#include "core/ops.h"

namespace levin::ops {

namespace {

using kernels::WeightedNorm;

Variable weighted_norm(WeightedNorm kind, const Variable& x, const Variable& weight, const Variable& bias,
                       double eps) {
    const Tensor xv = x.value().contiguous(), w = weight.value();
    const bool layer = kind == WeightedNorm::layer;
    const int64_t rows = xv.rows(), width = xv.dim(-1);
    LEVIN_CHECK(w.count() == width, "norm", "weight {} for width {}", to_string(w.shape()), width);
    const DType acc = accumulator_of(xv.dtype());
    Tensor mean = layer ? Tensor::empty({rows}, acc, xv.device()) : Tensor{};
    Tensor rstd = Tensor::empty({rows}, acc, xv.device());
    Tensor y = Tensor::empty(xv.shape(), xv.dtype(), xv.device());
    kernels::norm_forward(xv.stream(), {.kind = kind,
                                        .rows = rows,
                                        .width = width,
                                        .eps = eps,
                                        .dtype = xv.dtype(),
                                        .x = xv.data(),
                                        .weight = w.data(),
                                        .bias = layer ? bias.value().data() : nullptr,
                                        .y = y.data(),
                                        .mean = layer ? mean.data() : nullptr,
                                        .rstd = rstd.data()});
    std::vector<Variable> inputs{x, weight};
    if (layer) inputs.push_back(bias);
    return record(layer ? "layer_norm" : "rms_norm", inputs, y,
                  [kind, layer, xv, w, mean, rstd, rows, width](const Tensor& dy, Gradients& inputs) {
                      const Tensor gradient = dy.contiguous();
                      Tensor dx = Tensor::empty(xv.shape(), xv.dtype(), xv.device());
                      const DType acc = accumulator_of(xv.dtype());
                      Tensor dweight = Tensor::empty({width}, acc, xv.device());
                      Tensor dbias = layer ? Tensor::empty({width}, acc, xv.device()) : Tensor{};
                      kernels::norm_backward(xv.stream(), {.kind = kind,
                                                           .rows = rows,
                                                           .width = width,
                                                           .dtype = xv.dtype(),
                                                           .x = xv.data(),
                                                           .weight = w.data(),
                                                           .mean = layer ? mean.data() : nullptr,
                                                           .rstd = rstd.data(),
                                                           .dy = gradient.data(),
                                                           .dx = dx.data(),
                                                           .dweight = dweight.data(),
                                                           .dbias = layer ? dbias.data() : nullptr,
                                                           .beta = 0});
                      inputs.add(0, dx);
                      inputs.add(1, dweight);
                      if (layer) inputs.add(2, dbias);
                  });
}

}  // namespace

Variable rms_norm(const Variable& x, const Variable& weight, double eps) {
    const OpScope scope("rms_norm");
    return weighted_norm(WeightedNorm::rms, x, weight, {}, eps);
}

Variable layer_norm(const Variable& x, const Variable& weight, const Variable& bias, double eps) {
    const OpScope scope("layer_norm");
    return weighted_norm(WeightedNorm::layer, x, weight, bias, eps);
}

}  // namespace levin::ops
