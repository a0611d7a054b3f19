// Attention over sequences that are cut over the ranks of a context-parallel group (chunks.h); everything
// else in a layer works token by token and needs nothing.
#pragma once

#include "core/ops.h"
#include "parallel/communicator.h"
#include "parallel/context_parallel/chunks.h"

namespace levin::context_parallel {

using Ranks = std::shared_ptr<Communicator>;

// As ops::lightning_attention; layout.chunks is given. Each rank's state over its own chunk goes to all (one
// all-gather of heads * key_width * value_dim numbers per row, whatever the length), and
//   state entering rank r = sum_{j<r} exp(-slope * tokens between) state_j,
// only over chunks that the document at the border reaches back to. Backward mirrors it with the gradients of
// the entering states. (LASP, arXiv 2404.02882, passes the state along a ring; LASP-2, 2502.07563, gathers.)
//
// Initial and final state are those of the slice over all ranks, the same on every rank, and so are their
// gradients: given and wanted where layout.chunks says that a document continues or goes on, [1, heads,
// key_width, value_dim].
//
// A rank makes its state before any output. While it travels, forward, `meanwhile` runs: q need not be there
// before it does. Backward the gradient of q is formed, which needs nothing of the ranks behind. What a slice
// hands on is summed after all else.
ops::LightningResult lightning_attention(const Variable& q, const Variable& k, const Variable& v,
                                         const ops::LightningOptions& options, const ops::TokenLayout& layout,
                                         const Ranks& ranks, const std::function<void()>& meanwhile = {});

// A rank at the end of the row takes part in exchanges whose result it does not need, and goes on without
// waiting for them: the first rank forward, the last one backward. This waits for those that are left; call
// it when the passes of an update are done, before anything else is made of the ranks.
void finish_exchanges();

// As ops::softmax_attention: keys and values of the chunks before are gathered, their gradients scattered
// back.
Variable softmax_attention(const Variable& q, const Variable& k, const Variable& v, int64_t heads,
                           int64_t kv_heads, const ops::TokenLayout& layout, const Ranks& ranks);

}  // namespace levin::context_parallel
