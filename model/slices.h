// Runs of tokens that a layer handles at one time (trainer.recompute_slice), or in turn with another one
// (parallel.two_batch_overlap).
#pragma once

#include <vector>

#include "core/ops.h"

namespace levin {

struct LayerSlices {
    std::vector<RowSlice> rows;
    std::vector<ops::TokenLayout> layouts;  // of each slice alone
    size_t size() const { return rows.size(); }
    // Must slice i keep the attention state at its end, or start from one?
    bool hands_on(size_t i) const { return rows[i].continues || (i + 1 < size() && rows[i + 1].continues); }
};

// Cuts a matrix of tokens into slices of `most` tokens at most (0: one slice of all). Whole sequences, or
// whole packed documents, stay together as long as they fit; a longer one is cut by itself, into pieces of
// about the same length. Packed documents need layout.borders; those of the slices go to the device of
// cu_seqlens. With context parallelism the slices are those that chunk_layout made.
LayerSlices cut_into_slices(const ops::TokenLayout& layout, int64_t most);

// Two slices of whole sequences, or of whole packed documents, cut as near the middle as can be; one slice
// where the smaller one would have less than a quarter of the tokens, and with context parallelism. Packed
// documents as above.
LayerSlices cut_into_halves(const ops::TokenLayout& layout);

}  // namespace levin
