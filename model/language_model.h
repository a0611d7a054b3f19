// The language model: embedding, layers, final norm, output projection; training loss and recurrent decoding.
#pragma once

#include <map>
#include <span>
#include <string>
#include <vector>

#include "core/ops.h"
#include "model/config.h"
#include "model/layer.h"
#include "model/parameters.h"
#include "model/sharding.h"
#include "model/slices.h"

namespace levin {

struct Parameter {
    ParameterSpec spec;
    Variable variable;  // this rank's part, in the model's type; f32 for those that keep the accumulator
    Shard shard;
    // Of a parameter that several ranks of mesh->model() hold alike (a norm's weight, a tied embedding on the
    // last stage), one of them counts it: in norms over the whole model, and when it is saved.
    bool counted = true;
    // Backward leaves the gradient of this rank's share of the tokens: it is to be summed over mesh->tp().
    bool partial = false;
};

// How a model uses its tensor-parallel ranks (parallel/tensor_parallel/shares.h).
struct TensorParallelOptions {
    bool sequence_scatter = false;  // between blocks a rank has its share of the tokens
    // What a block begins and ends with travels in up to so many chunks of tokens, of so many bytes or more,
    // each while the next is multiplied.
    int64_t overlap_chunks = 1, least_chunk_bytes = int64_t{16} << 20;
    // A batch of several sequences goes through the layers as two halves, block by block in turn: the sum
    // that ends a block of one half travels during a block of the other. Not with context parallelism,
    // scattered tokens or full recomputation.
    bool two_batches = false;
};

// A sequence being decoded: constant memory per lightning layer, whatever its length.
struct DecodeState {
    int64_t position = 0;  // tokens seen so far
    std::vector<LayerState> layers;
};

enum class Recomputation { none, selective, full };

class LanguageModel {
public:
    // Allocates the parameters, uninitialised, in `dtype` (f64, f32 or bf16) on `device`: those of this rank
    // of `mesh` (null: all), see sharding.h. Every rank of the mesh makes the same calls. Throws Error(input)
    // when the model cannot be divided so.
    LanguageModel(const ModelConfig& config, DType dtype, const Device& device,
                  std::shared_ptr<const Mesh> mesh = nullptr, int64_t virtual_stages = 1,
                  const TensorParallelOptions& options = {});

    const ModelConfig& config() const { return config_; }
    DType dtype() const { return dtype_; }
    const Device& device() const { return device_; }
    std::vector<Parameter>& parameters() { return parameters_; }
    const std::vector<Parameter>& parameters() const { return parameters_; }

    // Null for a model alone.
    const std::shared_ptr<const Mesh>& mesh() const { return mesh_; }

    // Sets every parameter to its part of the starting values of `seed`: every layout starts alike.
    void initialize(uint64_t seed);
    // Sets every parameter from whole tensors by parameter name; throws Error(input) naming a missing or
    // misshapen one.
    void load(const std::map<std::string, Tensor>& values);

    // Output of the final norm, [tokens, hidden_size]. With context parallelism ids and layout are this
    // rank's chunk (chunk_layout, with slice_tokens()). Not with a pipeline. ids i32 [layout.tokens()] on the
    // device. With a state, the tokens continue the sequence: layout.first_position is taken from it and it
    // is advanced.
    Variable hidden(const Tensor& ids, ops::TokenLayout layout, DecodeState* state = nullptr) const;
    // Loss over targets (i32 [tokens], negative: does not count); see ops::linear_cross_entropy. With context
    // parallelism the sum over this rank's tokens, with tensor parallelism the same on all ranks.
    ops::CrossEntropyResult loss(const Tensor& ids, const Tensor& targets, const ops::TokenLayout& layout,
                                 const ops::CrossEntropyOptions& options) const;
    // hidden Whead^T, [rows, vocab_size]; whole on every rank.
    Tensor logits(const Variable& hidden) const;

    // Pipeline stages of the whole model; this rank has those with number % pp == its place.
    int64_t num_stages() const { return stages_; }
    // Rows of the stream between stages for a batch of `tokens` tokens: as many, or this rank's share.
    int64_t stream_rows(int64_t tokens) const { return tp_.shares(tokens).rows(); }
    // One stage: from the stream [stream_rows, hidden_size] of the stage before (undefined at stage 0) to
    // what goes to the next one. Of the last stage: the output of the final norm, [tokens, hidden_size].
    Variable run_stage(int64_t stage, const Variable& input, const Tensor& ids,
                       const ops::TokenLayout& layout) const;
    // Loss of what hidden() or the last stage returned.
    ops::CrossEntropyResult loss_of(const Variable& hidden, const Tensor& targets,
                                    const ops::CrossEntropyOptions& options) const;

    DecodeState new_state() const;
    // With full recomputation layers handle at most `slice_tokens` tokens at one time (0: all), see slices.h:
    // of a layer only its input and the attention states between slices exist at full length. Softmax layers
    // take slices of whole sequences only: a pass that cuts them throws Error(input).
    void set_recomputation(Recomputation mode, int64_t slice_tokens = 0) {
        recomputation_ = mode;
        slice_tokens_ = slice_tokens;
    }
    // Whether a micro-batch of two sequences or more goes through the layers in halves.
    bool two_batches() const { return two_batches_; }
    int64_t slice_tokens() const { return recomputation_ == Recomputation::full ? slice_tokens_ : 0; }

private:
    Variable parameter(const std::string& name) const;  // undefined when the model has none of this name
    Variable embed(const Tensor& ids, double scale) const;
    Residual begin(const Tensor& ids, const ops::TokenLayout& layout) const;
    // The streams of consecutive rows of one batch.
    Variable end(const std::vector<Residual>& streams, const ops::TokenLayout& layout) const;
    // Full recomputation: the layer by slices. The stream is one tensor before and after it.
    Residual recompute_layer(const Layer& layer, const Residual& stream,
                             const std::shared_ptr<const LayerSlices>& slices) const;
    // Layers first .. last - 1, those of this rank. One stream, or those of the two halves of the batch.
    std::vector<Residual> run_layers(StageLayers range, const Residual& stream,
                                     const ops::TokenLayout& layout, DecodeState* state) const;

    ModelConfig config_;
    DType dtype_;
    Device device_;
    std::shared_ptr<const Mesh> mesh_;
    tensor_parallel::Group tp_;
    bool two_batches_ = false;
    int64_t stages_ = 1;
    std::vector<Parameter> parameters_;
    std::map<std::string, size_t> index_;
    Variable embedding_, position_embedding_, head_;
    int64_t first_row_ = 0;      // of the whole vocabulary in embedding_ and head_
    std::vector<Layer> layers_;  // of this rank's stages
    NormParameters final_norm_;
    Recomputation recomputation_ = Recomputation::none;
    int64_t slice_tokens_ = 0;
};

// Throws Error(input) when an id is none of the model's.
void check_tokens(const LanguageModel& model, std::span<const int32_t> ids);

}  // namespace levin
