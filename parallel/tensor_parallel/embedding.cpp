#include "kernels/embedding.h"

#include "parallel/tensor_parallel/ops.h"

namespace levin::tensor_parallel {

Variable embedding(const Variable& table, int64_t first, const Tensor& ids, double scale, int64_t padding_id,
                   const TokenShares& shares) {
    const Tensor w = table.value();
    const int64_t rows = w.dim(0), width = w.dim(1);
    LEVIN_CHECK(ids.count() == shares.tokens(), "embedding", "{} ids for {} tokens", ids.count(),
                shares.tokens());
    const Tensor part = shares.summand({width}, w.dtype(), w.device());
    InFlight sum = shares.start_sum({part}, [&](int64_t first_token, int64_t tokens) {
        kernels::embedding_forward(w.stream(), {.tokens = tokens,
                                                .vocab = rows,
                                                .width = width,
                                                .dtype = w.dtype(),
                                                .scale = scale,
                                                .ids = ids.narrow(0, first_token, tokens).data<int32_t>(),
                                                .table = w.data(),
                                                .y = part.narrow(0, first_token, tokens).data(),
                                                .first = first});
    });
    sum.wait();  // one rank has the row, the others zero: exact
    return record("embedding", {table}, sum[0], [=](const Tensor& dy, Gradients& inputs) {
        InFlight whole = shares.start_gather({dy.contiguous()});
        whole.wait();
        const Tensor gradient = whole[0];
        inputs.accumulate(0, [&](Tensor& dtable, double beta) {
            if (beta == 0) dtable.fill(0);
            kernels::embedding_backward(gradient.stream(), {.tokens = shares.tokens(),
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
