// Output projection and cross-entropy in one op, in chunks of tokens: logits -> loss -> their gradient in
// place -> gradients of hidden and weight, so that each chunk of logits is formed once and never kept.
#include <algorithm>
#include <optional>

#include "core/ops.h"
#include "core/ops/chunked_loss.h"
#include "kernels/cross_entropy.h"
#include "kernels/elementwise.h"

namespace levin::ops {

namespace {

int64_t default_chunk(const Tensor& weight, int64_t tokens) {
    // Each chunk adds to the whole weight gradient in accumulator precision, so on a GPU, where that traffic
    // counts against the memory rate, chunks are large (4096 tokens of 64000 bf16 logits); a CPU wants the
    // logits in its caches.
    const int64_t bytes = int64_t{weight.device().is_cpu() ? 32 : 512} << 20;
    const int64_t row = weight.dim(0) * static_cast<int64_t>(size_of(weight.dtype()));
    const int64_t largest = std::max<int64_t>(64, bytes / std::max<int64_t>(1, row) / 64 * 64);
    // Equal chunks: 32768 tokens in 8 of 4096, which tiles divide, not in 7 of 4160 and a rest.
    const int64_t chunks = std::max<int64_t>(1, (tokens + largest - 1) / largest);
    return std::min(largest, ((tokens + chunks - 1) / chunks + 63) / 64 * 64);
}

}  // namespace

CrossEntropyResult linear_cross_entropy(const Variable& hidden, const Variable& weight, const Tensor& targets,
                                        const CrossEntropyOptions& options) {
    const OpScope scope("linear_cross_entropy");
    const Tensor h = hidden.value().contiguous(), w = weight.value();
    const int64_t tokens = h.rows(), vocab = w.dim(0);
    LEVIN_CHECK(h.dim(-1) == w.dim(1) && targets.count() == tokens && h.dtype() == w.dtype(),
                "linear_cross_entropy", "hidden {}, weight {}, {} targets do not fit", to_string(h.shape()),
                to_string(w.shape()), targets.count());
    const DType acc = accumulator_of(h.dtype());
    const bool want_hidden = gradients_enabled() && hidden.requires_grad();
    const bool want_weight = gradients_enabled() && weight.requires_grad();

    Tensor losses = Tensor::empty({tokens}, acc, h.device());
    Tensor dh = want_hidden ? Tensor::empty(h.shape(), h.dtype(), h.device()) : Tensor{};
    const int64_t chunk =
        std::min(tokens, options.chunk_tokens > 0 ? options.chunk_tokens : default_chunk(w, tokens));
    std::optional<ChunkGradient> dw;
    if (want_weight) dw.emplace(weight, chunk < tokens);
    Tensor logits;
    {
        MemoryScope scope(MemoryCategory::workspace);
        logits = Tensor::empty({chunk, vocab}, h.dtype(), h.device());
    }
    for (int64_t start = 0; start < tokens; start += chunk) {
        const int64_t rows = std::min(chunk, tokens - start);
        const Tensor h_rows = h.narrow(0, start, rows), z = logits.narrow(0, 0, rows);
        product(h_rows, false, w, true, z);
        kernels::cross_entropy(h.stream(), {.rows = rows,
                                            .vocab = vocab,
                                            .dtype = h.dtype(),
                                            .z_loss = options.z_loss,
                                            .gradient_scale = want_hidden || want_weight ? options.scale : 0,
                                            .logits = z.data(),
                                            .stride = z.row_stride(),
                                            .targets = targets.narrow(0, start, rows).data<int32_t>(),
                                            .loss = losses.narrow(0, start, rows).data()});
        if (want_hidden) product(z, false, w, false, dh.narrow(0, start, rows));
        if (dw) dw->add(z, h_rows);
    }

    return record_formed_loss(hidden, weight, losses, options.scale, dh, dw ? dw->apart() : Tensor{});
}

}  // namespace levin::ops
