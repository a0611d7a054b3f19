// The language model: embedding, layers, final norm, output projection; training loss and recurrent decoding.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "core/ops.h"
#include "model/config.h"
#include "model/layer.h"
#include "model/parameters.h"

namespace levin {

struct Parameter {
    ParameterSpec spec;
    Variable variable;  // in the model's type; f32 for those that keep the accumulator
};

// A sequence being decoded: constant memory per lightning layer, whatever its length.
struct DecodeState {
    int64_t position = 0;  // tokens seen so far
    std::vector<LayerState> layers;
};

enum class Recomputation { none, selective, full };

class LanguageModel {
public:
    // Allocates the parameters, uninitialised, in `dtype` (f64, f32 or bf16) on `device`.
    LanguageModel(const ModelConfig& config, DType dtype, const Device& device);

    const ModelConfig& config() const { return config_; }
    DType dtype() const { return dtype_; }
    const Device& device() const { return device_; }
    std::vector<Parameter>& parameters() { return parameters_; }
    const std::vector<Parameter>& parameters() const { return parameters_; }

    // Sets every parameter to initial_value(seed).
    void initialize(uint64_t seed);
    // Sets every parameter from tensors by parameter name; throws Error(input) naming a missing or misshapen
    // one.
    void load(const std::map<std::string, Tensor>& values);

    // Output of the final norm, [tokens, hidden_size]. ids i32 [layout.tokens()] on the device. With a state,
    // the tokens continue the sequence: layout.first_position is taken from it and it is advanced.
    Variable hidden(const Tensor& ids, ops::TokenLayout layout, DecodeState* state = nullptr) const;
    // Loss over targets (i32 [tokens], negative: does not count); see ops::linear_cross_entropy.
    ops::CrossEntropyResult loss(const Tensor& ids, const Tensor& targets, const ops::TokenLayout& layout,
                                 const ops::CrossEntropyOptions& options) const;
    // hidden Whead^T, [rows, vocab_size].
    Tensor logits(const Variable& hidden) const;

    DecodeState new_state() const;
    void set_recomputation(Recomputation mode) { recomputation_ = mode; }

private:
    Variable parameter(const std::string& name) const;  // undefined when the model has none of this name
    Residual run_layer(const Layer& layer, const Residual& stream, const ops::TokenLayout& layout,
                       LayerState* state) const;

    ModelConfig config_;
    DType dtype_;
    Device device_;
    std::vector<Parameter> parameters_;
    std::map<std::string, size_t> index_;
    Variable embedding_, position_embedding_, head_;
    std::vector<Layer> layers_;
    NormParameters final_norm_;
    Recomputation recomputation_ = Recomputation::none;
};

}  // namespace levin
