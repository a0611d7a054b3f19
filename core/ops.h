// The ops of levin: differentiable, device-free. Each family is one file in core/ops/, forward and backward
// side by side; the arithmetic is in kernels/. Activations are matrices [tokens, width]; a token is a row.
//
// A fused op (lightning_attention with activations and LRPE, add_srms_norm, gated_srms_norm, glu,
// linear_cross_entropy) has a composed form built of the simple ones; tests/core/fused_test.cpp holds them
// equal, values and gradients.
#pragma once

#include <functional>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "core/autograd.h"
#include "kernels/kernel.h"

namespace levin {
struct SequenceChunks;  // parallel/context_parallel/chunks.h
}

namespace levin::ops {

using kernels::Activation;

// --- add.cpp: a + b, factor * x, a * b elementwise; shapes and types agree.
Variable add(const Variable& a, const Variable& b);
Variable scale(const Variable& x, double factor);
Variable multiply(const Variable& a, const Variable& b);

// --- linear.cpp: y = x W^T (+ bias). x [tokens, in], weight [out, in], bias [out].
// With `first`, only these columns of y are formed at once; first->form_rest forms the others, and must be
// called before anybody reads them: work to put between the start and the end of something else.
struct FirstColumns {
    int64_t begin = 0, count = 0;
    std::function<void()> form_rest = {};
};
Variable linear(const Variable& x, const Variable& weight, const Variable& bias = {},
                FirstColumns* first = nullptr);

// --- split.cpp: column slices of x, widths summing to its width. No copy forward; none backward where the
// consumers write their gradients through Gradients::buffer().
std::vector<Variable> split(const Variable& x, const std::vector<int64_t>& widths);
// Runs of rows of x, as views; `rows` sums to those of x. join_rows: the inverse. Backward split_rows copies,
// forward join_rows; one run of all is the variable itself.
std::vector<Variable> split_rows(const Variable& x, const std::vector<int64_t>& rows);
Variable join_rows(const std::vector<Variable>& parts);

// --- activation.cpp: activation(x); `group` is the width over which exp subtracts its maximum (0: the whole
// row).
Variable activation(const Variable& x, Activation activation, int64_t group = 0);

// --- glu.cpp: activation(a) * b.
Variable glu(const Variable& a, const Variable& b, Activation activation);

// --- srms_norm.cpp
// x * rsqrt(mean(x^2) + eps) over the last axis.
Variable srms_norm(const Variable& x, double eps);
// {h, srms_norm(h)} with h = x + branch; branch undefined: h = x. Backward adds up the two gradients of h on
// its way.
std::pair<Variable, Variable> add_srms_norm(const Variable& x, const Variable& branch, double eps);
// gate(u) * srms_norm(o); gate none or sigmoid.
Variable gated_srms_norm(const Variable& o, const Variable& u, Activation gate, double eps);

// --- norm.cpp: RMSNorm and LayerNorm with weights [width].
Variable rms_norm(const Variable& x, const Variable& weight, double eps);
Variable layer_norm(const Variable& x, const Variable& weight, const Variable& bias, double eps);

// Where the rows of a matrix of tokens stand: `batch` rows of `length` tokens. Packed documents: batch 1 and
// `cu_seqlens` i32 [documents + 1] on the same device.
struct TokenLayout {
    int64_t batch = 1, length = 0;
    int64_t first_position = 0;
    Tensor cu_seqlens = {};
    std::shared_ptr<const std::vector<int32_t>> borders = {};  // cu_seqlens on the host, where it is known
    // Context parallelism: these rows are one chunk of longer ones, and this says what other ranks hold.
    std::shared_ptr<const SequenceChunks> chunks = {};
    // Chunks of slice after slice, one behind the other in these rows; of this layout itself only tokens()
    // counts.
    std::shared_ptr<const std::vector<TokenLayout>> slices = {};
    int64_t tokens() const { return batch * length; }
    int64_t sequences() const { return cu_seqlens.defined() ? cu_seqlens.count() - 1 : batch; }
};

// --- position.cpp
// LRPE: [tokens, heads * head_dim] -> [tokens, heads * 2 head_dim]; theta [heads, head_dim] in the
// accumulator type.
Variable lrpe(const Variable& x, const Variable& theta, const TokenLayout& layout);
// RoPE on each head (half-split pairs).
Variable rope(const Variable& x, int64_t heads, double base, const TokenLayout& layout);

// --- lightning_attention.cpp
struct LightningOptions {
    int64_t heads = 0;
    Tensor slopes = {};                                       // f32 [heads]
    float steepest = std::numeric_limits<float>::infinity();  // largest slope, where known: faster kernels
    Activation qk_activation = Activation::none, v_activation = Activation::none;
    Variable theta = {};  // LRPE; undefined: none
    Variable initial_state =
        {};  // accumulator type [sequences, heads, key_width, value_dim]; undefined: zero
    bool want_final_state = false;
};
struct LightningResult {
    Variable output;       // [tokens, heads * value_dim]
    Variable final_state;  // defined when wanted
};
// q, k [tokens, heads * key_dim], v [tokens, heads * value_dim], raw projections.
LightningResult lightning_attention(const Variable& q, const Variable& k, const Variable& v,
                                    const LightningOptions& options, const TokenLayout& layout);

// --- softmax_attention.cpp: causal. q [batch * length, heads * head_dim]; k, v [batch * key_length, kv_heads
// * head_dim]; key_length >= length (the cache comes first); 0: the same length.
Variable softmax_attention(const Variable& q, const Variable& k, const Variable& v, int64_t heads,
                           int64_t kv_heads, const TokenLayout& layout, int64_t key_length = 0);

// --- embedding.cpp: scale * table[ids]; ids i32 [tokens]. The row of `padding_id` gets no gradient (-1:
// none).
Variable embedding(const Variable& table, const Tensor& ids, double scale = 1, int64_t padding_id = -1);

// --- linear_cross_entropy.cpp
struct CrossEntropyOptions {
    double scale = 1;          // the result is scale * sum of token losses
    double z_loss = 0;         // adds z_loss * log_sum_exp^2 to each token's loss
    int64_t chunk_tokens = 0;  // tokens whose logits exist at one time; 0: chosen for about 32 MiB of logits
    bool operator==(const CrossEntropyOptions&) const = default;
};
struct CrossEntropyResult {
    Variable loss;        // [1], accumulator type: scale * sum over tokens with target >= 0
    Tensor token_losses;  // [tokens], accumulator type, unscaled
};
// Loss of logits = hidden weight^T against targets (i32 [tokens], negative: does not count), in chunks of
// tokens, so that logits of the whole batch never exist. With gradients on, the gradients of hidden and of
// the weight are formed in the same pass over the chunks, the weight's in place: backward() must follow, with
// this loss as its root.
CrossEntropyResult linear_cross_entropy(const Variable& hidden, const Variable& weight, const Tensor& targets,
                                        const CrossEntropyOptions& options = {});

}  // namespace levin::ops
