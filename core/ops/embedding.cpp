#include "core/ops/embedding.h"

#include "core/ops.h"

namespace levin::ops {

Variable embedding(const Variable& table, const Tensor& ids, double scale, int64_t padding_id) {
    const OpScope scope("embedding");
    const Tensor w = table.value();
    Tensor y = Tensor::empty({ids.count(), w.dim(1)}, w.dtype(), w.device());
    take_rows(w, ids, scale, y);
    return record("embedding", {table}, y, [ids, scale, padding_id](const Tensor& dy, Gradients& inputs) {
        inputs.accumulate(0, [&](Tensor& dtable, double beta) {
            add_rows(dy.contiguous(), ids, scale, padding_id, dtable, beta);
        });
    });
}

}  // namespace levin::ops
