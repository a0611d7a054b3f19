// The weight gradient of a loss whose logits are formed, and forgotten, chunk by chunk in the forward pass.
#pragma once

#include "core/autograd.h"
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

}  // namespace levin::ops
