// Token by token at the speed of the memory: the recurrent form of a model of lightning layers with
// everything in fixed memory, a few fused kernels a layer (kernels/decode.h), on a GPU launched as one graph.
#pragma once

#include <span>

#include "kernels/stream_graph.h"
#include "model/language_model.h"

namespace levin {

class Decoder {
public:
    // Lightning layers only, SimpleRMSNorm, no biases, no learnt positions, not divided over ranks.
    static bool supports(const LanguageModel& model);

    // `batch` sequences that stand at the same position, at first 0. The model must outlive the decoder, its
    // weights may change. Throws Error(internal) for a model that is not supported.
    Decoder(const LanguageModel& model, int64_t batch);

    int64_t batch() const { return batch_; }
    int64_t position() const { return position_; }
    // Goes on from here: states of `batch` sequences after LanguageModel::hidden(.., &state).
    void set_state(const DecodeState& state);
    // As if the sequences stood at this position, with the states they have (LRPE depends on it).
    void set_position(int64_t position);
    // The tokens to go in next, one of each sequence.
    void set_tokens(std::span<const int32_t> ids);

    // Takes the tokens in and forms the logits of the next ones; those most likely become the tokens to go in
    // next, unless set_tokens() is called. Nothing waits for the device.
    void step();
    // Logits of the last step [batch, vocab_size] and the most likely tokens [batch] i32; overwritten by the
    // next step.
    const Tensor& logits() const { return logits_; }
    const Tensor& tokens() const { return ids_; }

    // Bytes that a step must move: every weight once, every state read and written once.
    size_t bytes_per_step() const;

private:
    struct LayerMemory {
        Tensor in, out, glu_in, glu_out, gate_down, gate_up, theta, slopes;
        Tensor state;
    };
    void queue_step();

    const LanguageModel& model_;
    const ModelConfig& config_;
    int64_t batch_, position_ = 0;
    Tensor embedding_, head_;
    std::vector<LayerMemory> layers_;
    // Activations, [batch, width]. Two streams: a kernel never writes the one it reads.
    Tensor ids_, device_position_, h_[2], branch_, projection_, o_, low_, gate_, product_, logits_,
        workspace_;
    kernels::StreamGraph graph_;
    int64_t steps_ = 0;
};

}  // namespace levin
