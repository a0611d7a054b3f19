// How the tokens of a batch lie on the ranks of a tensor-parallel group, and how they get there.
//
// Inside a block a rank has all tokens and its part of the columns. Between blocks it has all tokens and all
// columns, or, scattered, all columns of its share of the tokens (sequence parallelism, arXiv 2205.05198):
// norms and residual additions are then done once, not by every rank, and what is kept for backward is
// divided. A block begins with gather(), which does nothing for what is not scattered, and ends with sum().
//
// Both go in chunks of tokens, so that one chunk travels while another is multiplied. Every chunk is dealt
// out to the ranks in equal pieces, which makes it one collective on consecutive memory on both sides:
//   tokens in order:  |  chunk 0: rank 0 | rank 1 | ..  |  chunk 1: rank 0 | rank 1 | ..  |  padding |
// Padding is zero in sums, so that gradients of rows of padding are zero; their values are nobody's concern.
#pragma once

#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "core/autograd.h"
#include "parallel/communicator.h"

namespace levin::tensor_parallel {

using Ranks = std::shared_ptr<Communicator>;

// Tensors of tokens on their way, chunk by chunk.
class InFlight {
public:
    // Calls use(first, rows) for the tokens of each chunk when they have arrived.
    void each(const std::function<void(int64_t first, int64_t rows)>& use);
    void wait();
    // Result number i. Not to be read before it has arrived.
    const Tensor& operator[](size_t i) const { return tensors_[i]; }

private:
    friend class TokenShares;
    struct Chunk {
        int64_t first, rows;
        std::vector<Pending> works;
        void wait();
    };
    std::vector<Tensor> tensors_;
    std::vector<Chunk> chunks_;
};

// A variable whose value may still be on its way: what needs it gets it, and other work goes between.
class Arriving {
public:
    Arriving() = default;
    Arriving(Variable here) : variable_(std::move(here)) {}
    // `rest` makes the value readable.
    Arriving(Variable variable, std::function<void()> rest)
        : variable_(std::move(variable)), rest_(std::make_shared<std::function<void()>>(std::move(rest))) {}

    bool defined() const { return variable_.defined(); }
    // Waits, once for all copies.
    const Variable& get() const {
        if (rest_ && *rest_) std::exchange(*rest_, nullptr)();
        return variable_;
    }

private:
    Variable variable_;
    std::shared_ptr<std::function<void()>> rest_;
};

class TokenShares {
public:
    TokenShares(Ranks ranks, int64_t tokens, bool scattered, int64_t chunks);

    const Ranks& ranks() const { return ranks_; }
    bool scattered() const { return scattered_; }
    int64_t tokens() const { return tokens_; }
    // What a rank has between blocks: all tokens, or its share, padding included.
    int64_t rows() const { return scattered_ ? piece_ * chunks() : tokens_; }
    // The token in a row of that; one >= tokens() is padding.
    int64_t token_of(int64_t row) const;

    // Memory for sum(): [tokens and padding, row..], uninitialised but for the padding, which is zero.
    Tensor summand(const Shape& row, DType dtype, const Device& device) const;
    // The sums over ranks of `parts` (from summand()), each [rows(), ..]. form(first, rows) computes tokens
    // first .. first + rows of this rank's parts; its sum travels while the next call computes. One launch a
    // chunk for all parts.
    InFlight start_sum(const std::vector<Tensor>& parts,
                       const std::function<void(int64_t first, int64_t rows)>& form) const;
    // From [rows(), ..] on each rank to [tokens(), ..] on all; one launch a chunk for all of `shares`.
    InFlight start_gather(const std::vector<Tensor>& shares) const;

private:
    // Rows of a chunk, and how many chunks there are.
    int64_t chunk() const { return piece_ * (scattered_ ? ranks_->size() : 1); }
    int64_t chunks() const { return (tokens_ + chunk() - 1) / chunk(); }

    Ranks ranks_;
    int64_t tokens_, piece_;
    bool scattered_;
};

// A group as a model uses it.
struct Group {
    Ranks ranks;           // null: no tensor parallelism
    bool scatter = false;  // scatter tokens between blocks
    // A batch goes in up to `chunks` chunks, each of at least `least_bytes` with `row_bytes` a token: below
    // that a collective costs more than it hides.
    int64_t chunks = 1, least_bytes = int64_t{16} << 20;
    int64_t row_bytes = 0;

    explicit operator bool() const { return ranks != nullptr; }
    TokenShares shares(int64_t tokens) const;
};

}  // namespace levin::tensor_parallel
