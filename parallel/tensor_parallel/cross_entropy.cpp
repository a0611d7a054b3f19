// ops/linear_cross_entropy.cpp with the columns of the logits divided over ranks.
#include <algorithm>
#include <optional>

#include "core/ops/chunked_loss.h"
#include "kernels/rank_parts.h"
#include "parallel/tensor_parallel/ops.h"

namespace levin::tensor_parallel {

using ops::product;
using ops::sum_rows;

namespace {

// Each chunk costs a collective, so chunks are larger than on a rank alone.
int64_t default_chunk(const Tensor& weight) {
    const int64_t bytes = int64_t{weight.device().is_cpu() ? 32 : 512} << 20;
    const int64_t row = weight.dim(0) * static_cast<int64_t>(size_of(weight.dtype()));
    return std::max<int64_t>(256, bytes / std::max<int64_t>(1, row) / 64 * 64);
}

}  // namespace

ops::CrossEntropyResult linear_cross_entropy(const Variable& hidden, const Variable& weight, int64_t first,
                                             int64_t vocab_size, const Tensor& targets,
                                             const ops::CrossEntropyOptions& options,
                                             const TokenShares& shares) {
    const Ranks& ranks = shares.ranks();
    const Tensor h = hidden.value().contiguous(), w = weight.value();
    const int64_t tokens = h.rows(), rows_of_w = w.dim(0);
    const int64_t vocab = std::clamp<int64_t>(vocab_size - first, 0, rows_of_w);  // own ones, without padding
    LEVIN_CHECK(h.dim(-1) == w.dim(1) && targets.count() == tokens && h.dtype() == w.dtype(),
                "linear_cross_entropy", "hidden {}, weight {}, {} targets do not fit", to_string(h.shape()),
                to_string(w.shape()), targets.count());
    const DType acc = accumulator_of(h.dtype());
    const bool want_hidden = gradients_enabled() && hidden.requires_grad();
    const bool want_weight = gradients_enabled() && weight.requires_grad();
    LEVIN_CHECK(!want_weight || weight.is_leaf(), "linear_cross_entropy",
                "the divided weight must be a leaf");

    Tensor losses = Tensor::empty({tokens}, acc, h.device());
    Tensor dh = want_hidden ? Tensor::empty(h.shape(), h.dtype(), h.device()) : Tensor{};
    const int64_t chunk =
        std::min(tokens, options.chunk_tokens > 0 ? options.chunk_tokens : default_chunk(w));
    std::optional<ops::ChunkGradient> dw;
    if (want_weight) dw.emplace(weight, chunk < tokens);
    Tensor logits, parts;
    {
        MemoryScope scope(MemoryCategory::workspace);
        logits = Tensor::empty({chunk, rows_of_w}, h.dtype(), h.device());
        parts = Tensor::empty({(ranks->size() + 1) * chunk * 3}, acc, h.device());
    }
    std::vector<Pending> sums;
    for (int64_t start = 0; start < tokens; start += chunk) {
        const int64_t rows = std::min(chunk, tokens - start);
        const Tensor h_rows = h.narrow(0, start, rows), z = logits.narrow(0, 0, rows);
        const Tensor ids = targets.narrow(0, start, rows);
        const Tensor own = parts.narrow(0, 0, rows * 3);
        const Tensor all = parts.narrow(0, chunk * 3, ranks->size() * rows * 3);
        product(h_rows, false, w, true, z);
        kernels::cross_entropy_parts(h.stream(), {.rows = rows,
                                                  .vocab = vocab,
                                                  .first = first,
                                                  .dtype = h.dtype(),
                                                  .logits = z.data(),
                                                  .stride = z.row_stride(),
                                                  .targets = ids.data<int32_t>(),
                                                  .parts = own.data()});
        ranks->all_gather(own, all);
        kernels::cross_entropy_join(h.stream(),
                                    {.ranks = ranks->size(),
                                     .rows = rows,
                                     .vocab = vocab,
                                     .first = first,
                                     .dtype = h.dtype(),
                                     .z_loss = options.z_loss,
                                     .gradient_scale = want_hidden || want_weight ? options.scale : 0,
                                     .parts = all.data(),
                                     .logits = z.data(),
                                     .stride = z.row_stride(),
                                     .targets = ids.data<int32_t>(),
                                     .loss = losses.narrow(0, start, rows).data()});
        if (want_hidden) {
            const Tensor dh_rows = dh.narrow(0, start, rows);
            product(z, false, w, false, dh_rows);
            if (!shares.scattered()) sums.push_back(ranks->start_all_reduce(dh_rows));
        }
        if (dw) dw->add(z, h_rows);
    }
    for (const Pending& sum : sums) sum->wait();

    return ops::record_formed_loss(hidden, weight, losses, options.scale, dh, dw ? dw->apart() : Tensor{});
}

}  // namespace levin::tensor_parallel
