// What linear_cross_entropy has in common whether a rank has all columns of the logits or its own alone: they
// are formed, and forgotten, chunk by chunk in the forward pass, and so are the gradients.
#pragma once

#include "core/autograd.h"
#include "core/ops.h"
#include "core/ops/product.h"

namespace levin::ops {

// Sums dz^T h over chunks where the weight's gradient lies, or apart, in the accumulator type, for the
// backward function to hand over: where the weight is no leaf, or its gradient narrower and the chunks
// several.
class ChunkGradient {
public:
    ChunkGradient(const Variable& weight, bool several) : weight_(weight) {
        const Tensor& w = weight.value();
        const DType acc = accumulator_of(w.dtype());
        if (!weight.is_leaf() || (several && weight.gradient_type() != acc))
            apart_ = Tensor::empty(w.shape(), acc, w.device());
    }
    // dz [rows, outputs], h [rows, width] of the next chunk.
    void add(const Tensor& dz, const Tensor& h) {
        const auto form = [&](const Tensor& dw, double beta) { product(dz, true, h, false, dw, beta); };
        if (apart_.defined())
            form(apart_, begun_ ? 1 : 0);
        else
            accumulate_gradient(weight_, form, Forms::either);
        begun_ = true;
    }
    // Undefined: the gradient is where it belongs.
    const Tensor& apart() const { return apart_; }

private:
    Variable weight_;
    Tensor apart_;
    bool begun_ = false;
};

// The loss: scale times the sum of `losses` [tokens]. `dh` was formed in the forward pass (undefined: not
// wanted), `dw` where the weight's gradient lies apart.
inline CrossEntropyResult record_formed_loss(const Variable& hidden, const Variable& weight,
                                             const Tensor& losses, double scale, const Tensor& dh,
                                             const Tensor& dw) {
    const Tensor loss = Tensor::zeros({1}, losses.dtype(), losses.device());
    sum_rows(losses.view({losses.count(), 1}), loss, 0);
    kernels::add(losses.stream(), {.count = 1,
                                   .dtype = losses.dtype(),
                                   .alpha = scale,
                                   .a = loss.data(),
                                   .beta = 0,
                                   .b = nullptr,
                                   .y = loss.data()});
    const Variable result = record_loss(
        "linear_cross_entropy", {hidden, weight}, loss, [dh, dw](const Tensor& gradient, Gradients& inputs) {
            LEVIN_CHECK(!gradient.defined(), "linear_cross_entropy",
                        "its gradients are formed in the forward pass: use CrossEntropyOptions::scale and "
                        "make this loss the root of backward()");
            if (dh.defined()) inputs.add(0, dh);
            if (dw.defined()) inputs.add(1, dw);
        });
    return {result, losses};
}

}  // namespace levin::ops
