// One layer: token mixer (lightning or softmax attention) and channel mixer (GLU), each behind a norm.
#pragma once

#include <functional>
#include <string>

#include "core/ops.h"
#include "model/config.h"
#include "parallel/tensor_parallel/shares.h"

namespace levin {

// What one layer remembers of a sequence: while decoding, where it belongs to the request, never to the
// model, and (kv alone) from slice to slice of a sequence that is recomputed in slices.
struct LayerState {
    Variable kv;          // lightning: [batch, heads, key_width, head_dim], accumulator type; constant size
    Tensor keys, values;  // softmax: [capacity, kv_heads * head_dim], the first `length` rows are filled
    int64_t length = 0;
};

// A norm's parameters; empty for SimpleRMSNorm.
struct NormParameters {
    Variable weight, bias;
};

// The residual stream between blocks: h and the branch that is still to be added to it, so that the addition
// can be fused with the norm that follows, and what the branch waits for can travel till then. [tokens,
// hidden_size], or this rank's share of the tokens (parallel/tensor_parallel/shares.h).
struct Residual {
    Variable h;
    tensor_parallel::Arriving branch;  // undefined: nothing to add
    Variable whole() const { return branch.defined() ? ops::add(h, branch.get()) : h; }
};

struct Layer {
    NormParameters attention_norm, inner_norm, glu_norm;
    Variable in, in_bias;  // qkvu, or qkv
    Variable gate_down, gate_down_bias, gate_up, gate_up_bias;
    Variable theta;
    Variable out, out_bias;
    Variable glu_in, glu_in_bias, glu_out, glu_out_bias;
    Tensor slopes;       // lightning layers
    float steepest = 0;  // the largest of them
    int64_t index = 0;
    int64_t heads = 0, kv_heads = 0, glu_width = 0;  // of this rank
    // Ranks that share the layer's parameters, and its sequences; null: alone.
    tensor_parallel::Group tp;
    std::shared_ptr<Communicator> cp;

    Residual forward(const ModelConfig& config, const Residual& stream, const ops::TokenLayout& layout,
                     LayerState* state) const {
        return glu_block(config, attention_block(config, stream, layout, state), layout);
    }
    Residual attention_block(const ModelConfig& config, const Residual& stream,
                             const ops::TokenLayout& layout, LayerState* state) const;
    Residual glu_block(const ModelConfig& config, const Residual& stream,
                       const ops::TokenLayout& layout) const;

private:
    using Arriving = tensor_parallel::Arriving;
    // The first linear of a block, and the last one.
    Variable into(const Variable& x, const Variable& weight, const Variable& bias,
                  const ops::TokenLayout& layout, ops::FirstColumns* first = nullptr) const;
    Arriving out_of(const Variable& y, const Variable& weight, const Variable& bias,
                    const ops::TokenLayout& layout) const;
    Arriving attention(const ModelConfig& config, const Variable& x, const ops::TokenLayout& layout,
                       LayerState* state) const;
    Arriving lightning(const ModelConfig& config, const Variable& x, const ops::TokenLayout& layout,
                       LayerState* state) const;
    Variable softmax(const ModelConfig& config, const Variable& x, const ops::TokenLayout& layout,
                     LayerState* state) const;
};

// norm(x), and {h + branch, norm(h + branch)}: fused for SimpleRMSNorm, composed for the others.
Variable apply_norm(const ModelConfig& config, const Variable& x, const NormParameters& parameters);
std::pair<Variable, Variable> add_and_norm(const ModelConfig& config, const Residual& stream,
                                           const NormParameters& parameters);

}  // namespace levin
