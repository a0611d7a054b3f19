#include "parallel/tensor_parallel/ops.h"

namespace levin::tensor_parallel {

namespace {

// Own columns of every rank -> whole rows.
Tensor gather(const Tensor& x, Communicator& ranks) {
    const int64_t rows = x.rows(), width = x.dim(-1);
    const Tensor parts = Tensor::empty({ranks.size() * rows, width}, x.dtype(), x.device());
    ranks.all_gather(x.contiguous(), parts);
    Tensor whole = Tensor::empty({rows, ranks.size() * width}, x.dtype(), x.device());
    for (int64_t r = 0; r < ranks.size(); ++r)
        whole.narrow(-1, r * width, width).copy_from(parts.narrow(0, r * rows, rows));
    return whole;
}

Tensor take(const Tensor& x, const Communicator& ranks) {
    const int64_t width = x.dim(-1) / ranks.size();
    return x.narrow(-1, ranks.rank() * width, width);
}

}  // namespace

Variable gather_columns(const Variable& x, const Ranks& ranks) {
    return record("gather_columns", {x}, gather(x.value(), *ranks),
                  [ranks](const Tensor& dy, Gradients& inputs) { inputs.add(0, take(dy, *ranks)); });
}

Variable take_columns(const Variable& x, const Ranks& ranks) {
    LEVIN_CHECK(x.dim(-1) % ranks->size() == 0, "take_columns", "{} ranks do not divide the width of {}",
                ranks->size(), to_string(x.shape()));
    return record("take_columns", {x}, take(x.value(), *ranks),
                  [ranks](const Tensor& dy, Gradients& inputs) { inputs.add(0, gather(dy, *ranks)); });
}

}  // namespace levin::tensor_parallel
