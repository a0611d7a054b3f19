#include "parallel/tensor_parallel/shares.h"

#include <algorithm>

namespace levin::tensor_parallel {

namespace {

// Chunks begin at multiples of this, where they are that long: what the tiles of matrix products like.
constexpr int64_t kTile = 128;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Starts what `calls` starts for each of `count` tensors, as one launch.
std::vector<Pending> launch(Communicator& ranks, size_t count, const std::function<Pending(size_t)>& start) {
    std::vector<Pending> works;
    if (count == 1) return {start(0)};
    ranks.group([&] {
        for (size_t i = 0; i < count; ++i) works.push_back(start(i));
    });
    return works;
}

}  // namespace

// From the last one on: what waits for it need not stop again at those before it.
void InFlight::Chunk::wait() {
    for (; !works.empty(); works.pop_back()) works.back()->wait();
}

void InFlight::each(const std::function<void(int64_t, int64_t)>& use) {
    for (Chunk& chunk : chunks_) {
        chunk.wait();
        use(chunk.first, chunk.rows);
    }
}

void InFlight::wait() {
    for (auto chunk = chunks_.rbegin(); chunk != chunks_.rend(); ++chunk) chunk->wait();
}

TokenShares::TokenShares(Ranks ranks, int64_t tokens, bool scattered, int64_t chunks)
    : ranks_(std::move(ranks)), tokens_(tokens), scattered_(scattered) {
    LEVIN_CHECK(tokens > 0 && chunks > 0, "tensor parallel", "{} tokens in {} chunks", tokens, chunks);
    piece_ = divide_up(tokens, chunks * (scattered ? ranks_->size() : 1));
    if (chunks > 1 && piece_ >= kTile) piece_ = divide_up(piece_, kTile) * kTile;
}

int64_t TokenShares::token_of(int64_t row) const {
    if (!scattered_) return row;
    return row / piece_ * chunk() + ranks_->rank() * piece_ + row % piece_;
}

Tensor TokenShares::summand(const Shape& row, DType dtype, const Device& device) const {
    const int64_t rows = scattered_ ? chunks() * chunk() : tokens_;
    Shape shape{rows};
    shape.insert(shape.end(), row.begin(), row.end());
    Tensor part = Tensor::empty(shape, dtype, device);
    if (rows > tokens_) part.narrow(0, tokens_, rows - tokens_).fill(0);
    return part;
}

InFlight TokenShares::start_sum(const std::vector<Tensor>& parts,
                                const std::function<void(int64_t, int64_t)>& form) const {
    InFlight result;
    for (const Tensor& part : parts) {
        Shape shape = part.shape();
        shape[0] = rows();
        result.tensors_.push_back(scattered_ ? Tensor::empty(shape, part.dtype(), part.device()) : part);
    }
    for (int64_t c = 0; c < chunks(); ++c) {
        const int64_t first = c * chunk(), rows = std::min(chunk(), tokens_ - first);
        form(first, rows);
        result.chunks_.push_back({first, rows, launch(*ranks_, parts.size(), [&](size_t i) {
                                      if (!scattered_)
                                          return ranks_->start_all_reduce(parts[i].narrow(0, first, rows));
                                      return ranks_->start_reduce_scatter(
                                          parts[i].narrow(0, first, chunk()),
                                          result.tensors_[i].narrow(0, c * piece_, piece_));
                                  })});
    }
    return result;
}

InFlight TokenShares::start_gather(const std::vector<Tensor>& shares) const {
    InFlight result;
    if (!scattered_) {
        result.tensors_ = shares;
        result.chunks_.push_back({0, tokens_, {}});
        return result;
    }
    std::vector<Tensor> wholes;
    for (const Tensor& share : shares) {
        LEVIN_CHECK(share.dim(0) == rows(), "tensor parallel", "a share {} of {} tokens, {} rows expected",
                    to_string(share.shape()), tokens_, rows());
        Shape shape = share.shape();
        shape[0] = chunks() * chunk();
        wholes.push_back(Tensor::empty(shape, share.dtype(), share.device()));
        result.tensors_.push_back(wholes.back().narrow(0, 0, tokens_));
    }
    for (int64_t c = 0; c < chunks(); ++c) {
        const int64_t first = c * chunk();
        result.chunks_.push_back(
            {first, std::min(chunk(), tokens_ - first), launch(*ranks_, shares.size(), [&](size_t i) {
                 return ranks_->start_all_gather(shares[i].narrow(0, c * piece_, piece_),
                                                 wholes[i].narrow(0, first, chunk()));
             })});
    }
    return result;
}

TokenShares Group::shares(int64_t tokens) const {
    const int64_t most = tokens * row_bytes / least_bytes;
    return {ranks, tokens, scatter, std::clamp<int64_t>(most, 1, chunks)};
}

}  // namespace levin::tensor_parallel
