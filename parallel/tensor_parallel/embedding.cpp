#include "kernels/embedding.h"

#include "parallel/tensor_parallel/ops.h"

namespace levin::tensor_parallel {

Variable embedding(const Variable& table, int64_t first, const Tensor& ids, double scale, int64_t padding_id,
                   const Ranks& ranks) {
    const Tensor w = table.value();
    const int64_t tokens = ids.count(), rows = w.dim(0), width = w.dim(1);
    Tensor y = Tensor::empty({tokens, width}, w.dtype(), w.device());
    kernels::embedding_forward(w.stream(), {.tokens = tokens,
                                            .vocab = rows,
                                            .width = width,
                                            .dtype = w.dtype(),
                                            .scale = scale,
                                            .ids = ids.data<int32_t>(),
                                            .table = w.data(),
                                            .y = y.data(),
                                            .first = first});
    ranks->all_reduce(y);  // one rank has the row, the others zero: exact
    return record("embedding", {table}, y, [=](const Tensor& dy, Gradients& inputs) {
        const Tensor gradient = dy.contiguous();
        inputs.accumulate(0, [&](Tensor& dtable, double beta) {
            if (beta == 0) dtable.fill(0);
            kernels::embedding_backward(gradient.stream(), {.tokens = tokens,
                                                            .vocab = rows,
                                                            .width = width,
                                                            .dtype = gradient.dtype(),
                                                            .scale = scale,
                                                            .padding_id = padding_id,
                                                            .ids = ids.data<int32_t>(),
                                                            .dy = gradient.data(),
                                                            .dtable = dtable.data(),
                                                            .first = first,
                                                            .divided = true});
        });
    });
}

}  // namespace levin::tensor_parallel
