// Loss on held-out data.
#pragma once

#include "data/loader.h"
#include "model/language_model.h"
#include "parallel/communicator.h"

namespace levin {

// A batch as the model takes it.
struct DeviceBatch {
    Tensor ids, targets;  // i32 [tokens]
    ops::TokenLayout layout;
    int64_t counted = 0;  // targets that count
};
// This rank's part of a batch, as `model` takes it: with context parallelism its chunk of every sequence.
DeviceBatch to_device(const Batch& batch, const LanguageModel& model);

struct EvaluationResult {
    double loss = 0;  // mean cross-entropy per token, nats; perplexity = exp(loss)
    int64_t tokens = 0;
};

// Samples 0 .. micro_batch * batches of the loader, in order, dealt over the ranks (of a model with a mesh:
// over its data-parallel ranks); batches 0: all there are. Collective over ranks, or over the mesh.
EvaluationResult evaluate(const LanguageModel& model, const Loader& loader, int64_t micro_batch,
                          int64_t batches, Communicator& ranks);

}  // namespace levin
