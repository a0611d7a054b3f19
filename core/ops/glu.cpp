// Gated product of the channel mixer: SGLU (no activation) and SwiGLU (silu).
#include "core/ops.h"
#include "kernels/elementwise.h"

namespace levin::ops {

Variable glu(const Variable& a, const Variable& b, Activation activation) {
    const OpScope scope("glu");
    const Tensor av = a.value(), bv = b.value();
    LEVIN_CHECK(av.shape() == bv.shape(), "glu", "a {} and b {} differ", to_string(av.shape()),
                to_string(bv.shape()));
    Tensor product = Tensor::empty(av.shape(), av.dtype(), av.device());
    kernels::glu_forward(av.stream(), {.rows = av.rows(),
                                       .columns = av.dim(-1),
                                       .dtype = av.dtype(),
                                       .activation = activation,
                                       .a = av.data(),
                                       .a_stride = av.row_stride(),
                                       .b = bv.data(),
                                       .b_stride = bv.row_stride(),
                                       .y = product.data()});
    Variable y = record("glu", {a, b}, product, [av, bv, activation](const Tensor& dy, Gradients& inputs) {
        Tensor da = inputs.buffer(0), db = inputs.buffer(1);
        Tensor again;
        if (inputs.value_wanted(0)) again = Tensor::empty(av.shape(), av.dtype(), av.device());
        const Tensor gradient = dy.contiguous();
        kernels::glu_backward(av.stream(), {.rows = av.rows(),
                                            .columns = av.dim(-1),
                                            .dtype = av.dtype(),
                                            .activation = activation,
                                            .a = av.data(),
                                            .a_stride = av.row_stride(),
                                            .b = bv.data(),
                                            .b_stride = bv.row_stride(),
                                            .dy = gradient.data(),
                                            .da = da.data(),
                                            .da_stride = da.row_stride(),
                                            .db = db.data(),
                                            .db_stride = db.row_stride(),
                                            .y = again.defined() ? again.data() : nullptr});
        if (again.defined()) inputs.give_value(0, again);
        inputs.add(0, da);
        inputs.add(1, db);
    });
    y.set_formed_again();
    return y;
}

}  // namespace levin::ops
