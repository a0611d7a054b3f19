#include "core/ops/embedding.h"

#include "parallel/tensor_parallel/ops.h"

namespace levin::tensor_parallel {

Variable embedding(const Variable& table, int64_t first, const Tensor& ids, double scale, int64_t padding_id,
                   const TokenShares& shares) {
    const Tensor w = table.value();
    LEVIN_CHECK(ids.count() == shares.tokens(), "embedding", "{} ids for {} tokens", ids.count(),
                shares.tokens());
    const Tensor part = shares.summand({w.dim(1)}, w.dtype(), w.device());
    InFlight sum = shares.start_sum({part}, [&](int64_t begin, int64_t tokens) {
        ops::take_rows(w, ids.narrow(0, begin, tokens), scale, part.narrow(0, begin, tokens), first);
    });
    sum.wait();  // one rank has the row, the others zero: exact
    return record("embedding", {table}, sum[0], [=](const Tensor& dy, Gradients& inputs) {
        InFlight whole = shares.start_gather({dy.contiguous()});
        whole.wait();
        inputs.accumulate(0, [&](Tensor& dtable, double beta) {
            ops::add_rows(whole[0], ids, scale, padding_id, dtable, beta, first);
        });
    });
}

}  // namespace levin::tensor_parallel
