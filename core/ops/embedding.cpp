#include "kernels/embedding.h"

#include "core/ops.h"

namespace levin::ops {

Variable embedding(const Variable& table, const Tensor& ids, double scale, int64_t padding_id) {
    const OpScope scope("embedding");
    const Tensor w = table.value();
    const int64_t tokens = ids.count(), vocab = w.dim(0), width = w.dim(1);
    Tensor y = Tensor::empty({tokens, width}, w.dtype(), w.device());
    kernels::embedding_forward(w.stream(), {.tokens = tokens,
                                            .vocab = vocab,
                                            .width = width,
                                            .dtype = w.dtype(),
                                            .scale = scale,
                                            .ids = ids.data<int32_t>(),
                                            .table = w.data(),
                                            .y = y.data()});
    return record("embedding", {table}, y,
                  [ids, scale, padding_id, tokens, vocab, width](const Tensor& dy, Gradients& inputs) {
                      const Tensor gradient = dy.contiguous();
                      inputs.accumulate(0, [&](Tensor& dtable, double beta) {
                          if (beta == 0) dtable.fill(0);
                          kernels::embedding_backward(gradient.stream(), {.tokens = tokens,
                                                                          .vocab = vocab,
                                                                          .width = width,
                                                                          .dtype = gradient.dtype(),
                                                                          .scale = scale,
                                                                          .padding_id = padding_id,
                                                                          .ids = ids.data<int32_t>(),
                                                                          .dy = gradient.data(),
                                                                          .dtable = dtable.data()});
                      });
                  });
}

}  // namespace levin::ops
