// Token embedding: gather and its gradient.
#pragma once

#include "kernels/kernel.h"

namespace levin::kernels {

// y[t,:] = scale * table[ids[t] - first,:]; zero where ids[t] is outside first .. first + vocab (a table
// divided over ranks: another one has that row). ids i32, within the whole table (checked by the caller).
// table, y: dtype.
struct EmbeddingForward {
    int64_t tokens, vocab, width;
    DType dtype;
    double scale;
    const int32_t* ids;
    const void* table;
    void* y;
    int64_t first = 0;
};
void embedding_forward(const Stream& stream, const EmbeddingForward& args);

// dtable (acc, [vocab, width]) += scale * sum of dy over the tokens of each id; rows of `padding_id` (-1:
// none) get nothing, nor, of a `divided` table, ids outside first .. first + vocab; padding_id is an id, not
// a row. Always adds: the caller zeroes. Fixed summation order (token order), no atomics.
struct EmbeddingBackward {
    int64_t tokens, vocab, width;
    DType dtype;
    double scale;
    int64_t padding_id;
    const int32_t* ids;
    const void* dy;
    void* dtable;
    int64_t first = 0;
    bool divided = false;  // ids may lie outside this part of the table
};
void embedding_backward(const Stream& stream, const EmbeddingBackward& args);

}  // namespace levin::kernels
