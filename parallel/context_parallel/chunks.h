// Sequences cut over the ranks of a context-parallel group: rank r has a run of tokens of every row, the runs
// in rank order, their lengths differing by one at most.
#pragma once

#include <vector>

#include "core/ops.h"

namespace levin {

// What a rank must know of the others' chunks. All numbers are places in the whole row; packed documents make
// one row of the whole batch.
struct SequenceChunks {
    std::vector<int64_t> starts;           // [ranks + 1]: chunk r is starts[r] .. starts[r + 1]
    std::vector<int64_t> document_starts;  // [ranks]: where the document of the token starts[r] begins
    int rank = 0;

    // A run of this rank's tokens in which the attention state is handed on without a break in the middle, or
    // (with cu_seqlens) several whole documents.
    struct Segment {
        int64_t begin = 0, length = 0;  // within a row of this rank
        bool enters = false;            // a document of earlier chunks goes on here
        bool leaves = false;            // and on into the next chunk
        Tensor cu_seqlens = {};         // from 0 to length
    };
    std::vector<Segment> segments;

    // For softmax layers and packed documents: borders over the keys from document_starts[rank] on.
    Tensor key_cu_seqlens = {};

    int64_t ranks() const { return static_cast<int64_t>(document_starts.size()); }
    int64_t length_of(int64_t r) const {
        return starts[static_cast<size_t>(r) + 1] - starts[static_cast<size_t>(r)];
    }
    int64_t longest() const;
    // Tokens between the end of chunk `from` and the start of chunk `to` (from < to); -1 when no document
    // reaches from one to the other.
    int64_t distance(int64_t from, int64_t to) const;
};

// This rank's part of `batch` rows of `length` tokens. `borders` are the packed documents of the whole batch
// (0 .. batch * length), empty for none. On one rank there are no chunks. Throws Error(input) when a row has
// fewer tokens than there are ranks.
ops::TokenLayout chunk_layout(int64_t batch, int64_t length, const std::vector<int32_t>& borders, int rank,
                              int ranks, const Device& device);
// The values of this rank's tokens, from those of the whole batch. `layout` comes from chunk_layout.
std::vector<int32_t> chunk_of(const std::vector<int32_t>& values, const ops::TokenLayout& layout);

}  // namespace levin
