// Rows of an embedding table and their gradient; of a table divided over ranks too, where `first` is the id
// of this part's row 0, and ids outside the part give zero and get no gradient.
#pragma once

#include <optional>

#include "core/tensor.h"
#include "kernels/embedding.h"

namespace levin::ops {

// y [tokens, width] = scale table[ids - first].
inline void take_rows(const Tensor& table, const Tensor& ids, double scale, const Tensor& y,
                      std::optional<int64_t> first = {}) {
    kernels::embedding_forward(table.stream(), {.tokens = ids.count(),
                                                .vocab = table.dim(0),
                                                .width = table.dim(1),
                                                .dtype = table.dtype(),
                                                .scale = scale,
                                                .ids = ids.data<int32_t>(),
                                                .table = table.data(),
                                                .y = y.data(),
                                                .first = first.value_or(0)});
}

// dtable = beta dtable + scale times the sum of dy over the tokens of each id but padding_id (-1: none). beta
// is 0 or 1. dy contiguous, of all `ids`.
inline void add_rows(const Tensor& dy, const Tensor& ids, double scale, int64_t padding_id, Tensor& dtable,
                     double beta, std::optional<int64_t> first = {}) {
    if (beta == 0) dtable.fill(0);
    kernels::embedding_backward(dy.stream(), {.tokens = ids.count(),
                                              .vocab = dtable.dim(0),
                                              .width = dtable.dim(1),
                                              .dtype = dy.dtype(),
                                              .scale = scale,
                                              .padding_id = padding_id,
                                              .ids = ids.data<int32_t>(),
                                              .dy = dy.data(),
                                              .dtable = dtable.data(),
                                              .first = first.value_or(0),
                                              .divided = first.has_value()});
}

}  // namespace levin::ops
