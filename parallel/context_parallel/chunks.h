// Sequences cut over the ranks of a context-parallel group: rank r has a run of tokens of every row, the runs
// in rank order, their lengths differing by one at most.
//
// Where layers go slice by slice (trainer.recompute_slice, model/slices.h), the rows are cut into slices
// first and each slice over all ranks: with 2 ranks the tokens 0 .. 2n are slice 0, of which rank 0 has the
// first n, rank 1 the others, 2n .. 4n are slice 1, and so on. So all ranks are in the same slice at the same
// time, and the attention state that enters it, its gradient backward, is known to all when it begins. Had a
// rank one run of tokens, forward would need the keys and values of all slices before the first output, and
// backward the gradients of all outputs before the first of keys: a second sweep, or several more tensors of
// full length. This way the price is one gather of states a slice, layer and direction, behind the same work
// as without slices; memory is that of slices on one rank.
#pragma once

#include <vector>

#include "core/ops.h"

namespace levin {

// What a rank must know of the others' chunks. All numbers are places in the whole row; packed documents make
// one row of the whole batch.
struct SequenceChunks {
    std::vector<int64_t> starts;           // [ranks + 1]: chunk r is starts[r] .. starts[r + 1]
    std::vector<int64_t> document_starts;  // [ranks + 1]: where the document of the token starts[r] begins
    int rank = 0;
    int64_t first_row = 0, row_length = 0;  // where the rows lie in the batch

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

    int64_t ranks() const { return static_cast<int64_t>(starts.size()) - 1; }
    int64_t length_of(int64_t r) const {
        return starts[static_cast<size_t>(r) + 1] - starts[static_cast<size_t>(r)];
    }
    int64_t longest() const;
    // Slices: a document of tokens before the first chunk goes on here, or beyond the last one.
    bool continues() const { return document_starts.front() < starts.front(); }
    bool goes_on() const { return document_starts.back() < starts.back(); }
    // Tokens between the end of chunk `from` and the start of chunk `to` (from < to); -1 when no document
    // reaches from one to the other. Chunk -1 is all that comes before, chunk ranks() all that comes after.
    int64_t distance(int64_t from, int64_t to) const;
};

// This rank's part of `batch` rows of `length` tokens. `borders` are the packed documents of the whole batch
// (0 .. batch * length), empty for none. On one rank there are no chunks. With `slice`, and several ranks
// that would have more tokens than that, the result has TokenLayout::slices, in which a rank has `slice`
// tokens at most, or one more: whole rows where they fit, else pieces of one. Throws Error(input) when a row
// has fewer tokens than there are ranks.
ops::TokenLayout chunk_layout(int64_t batch, int64_t length, const std::vector<int32_t>& borders, int rank,
                              int ranks, const Device& device, int64_t slice = 0);
// The values of this rank's tokens, from those of the whole batch. `layout` comes from chunk_layout.
std::vector<int32_t> chunk_of(const std::vector<int32_t>& values, const ops::TokenLayout& layout);

// Borders, 0 .. length, that cut `length` tokens into about equal pieces of `most` at most: multiples of
// `unit` where that allows it, the last one as it comes. A rest of less than `least` tokens goes with the
// piece before.
std::vector<int64_t> cut_evenly(int64_t length, int64_t most, int64_t unit, int64_t least = 1);

}  // namespace levin
