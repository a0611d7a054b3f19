// Ops whose weight is divided over the ranks of a tensor-parallel group (Megatron-LM, arXiv 1909.08053).
//
// Inside a block a rank has its heads, or its columns of the GLU, of all tokens. Between blocks activations
// are whole and equal on every rank of the group, to the bit, or every rank has a share of the tokens
// (shares.h):
//   x --column_linear--> own columns --..--> row_linear --> y
//   whole:     a sum over ranks forward in row_linear, backward in column_linear
//   scattered: a gather at the beginning and a sum at the end, forward and backward; column_linear keeps its
//              share of x alone and gathers it again backward
// Parameters that work on x and y between blocks, and the bias of row_linear, get the gradient of this rank's
// tokens: scattered, it is still to be summed over the ranks.
//
// What ends a block returns while its sum travels, so that the block of another batch can go between.
//
// Every rank calls the same ops in the same order. The group may have one rank.
#pragma once

#include <memory>

#include "core/ops.h"
#include "parallel/tensor_parallel/shares.h"

namespace levin::tensor_parallel {

// linear.cpp
// y = x W^T + bias with this rank's rows of W and bias: of all tokens its columns of y. Backward sums dx over
// ranks, while the weight gradient is formed. `first` as in ops::linear.
Variable column_linear(const Variable& x, const Variable& weight, const Variable& bias,
                       const TokenShares& shares, ops::FirstColumns* first = nullptr);
// y = sum over ranks of x W^T, + bias: x are this rank's columns, W [out, own columns], bias whole.
Arriving row_linear(const Variable& x, const Variable& weight, const Variable& bias,
                    const TokenShares& shares);
// x of all tokens; backward sums its gradient over ranks. For an x between blocks that goes into divided work
// other than column_linear.
Variable enter(const Variable& x, const TokenShares& shares);

// gated_norm.cpp: the end of an attention block, row_linear(gate(u) * simple_rms_norm(o)) with a norm over
// the columns of all ranks, `width` in all. u undefined: no gate. The norm has no weight, so it is one factor
// per token, which commutes with the projection: y = r sum_p W_p (gate(u_p) o_p), r = rsqrt(S / width + eps).
// S, the sum of squares over ranks, goes out with the partial products as one launch (in the accumulator
// type), and so does what it needs backward where dy is gathered: the norm costs no collective of its own.
Arriving gated_norm_row_linear(const Variable& o, const Variable& u, ops::Activation gate, double eps,
                               int64_t width, const Variable& weight, const Variable& bias,
                               const TokenShares& shares);

// columns.cpp: for what needs whole rows in the middle of a block (norms with weights). gather_columns: own
// columns -> whole rows; take_columns: whole rows -> own columns, the inverse. What is computed between the
// two is computed on every rank alike, of all tokens.
Variable gather_columns(const Variable& x, const Ranks& ranks);
Variable take_columns(const Variable& x, const Ranks& ranks);

// embedding.cpp: as ops::embedding; table holds the rows first .. first + table.dim(0) of the whole one. ids
// of all tokens; the result is as between blocks.
Variable embedding(const Variable& table, int64_t first, const Tensor& ids, double scale, int64_t padding_id,
                   const TokenShares& shares);

// cross_entropy.cpp: as ops::linear_cross_entropy; weight holds the rows first .. of the whole one, which has
// vocab_size rows. Rows beyond that are padding: they neither win nor count, and their gradient is zero. The
// loss is whole on every rank. hidden is of all tokens; where they are scattered between blocks it comes from
// enter(), which sums its gradient, else that is done here, chunk by chunk. One all-gather of three numbers
// per token for each chunk.
ops::CrossEntropyResult linear_cross_entropy(const Variable& hidden, const Variable& weight, int64_t first,
                                             int64_t vocab_size, const Tensor& targets,
                                             const ops::CrossEntropyOptions& options,
                                             const TokenShares& shares);

}  // namespace levin::tensor_parallel
