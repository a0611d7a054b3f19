// Forward and backward passes of the micro-batches of an update on this rank's part of the model.
#pragma once

#include <vector>

#include "model/language_model.h"
#include "parallel/data_parallel.h"
#include "trainer/config.h"
#include "trainer/evaluation.h"

namespace levin {

class StepGraph;

// By parameter: whether a rank forms its gradient in bf16 instead of adding it up in f32. That takes
// parallel.gradient_dtype, and one contribution an update: of `micro_batches` one, in one piece. A tied
// embedding has two. `two_batches`: a micro-batch goes in two halves.
std::vector<bool> formed_in_bf16(const LanguageModel& model, const Config& config, int64_t micro_batches,
                                 bool two_batches);
// Gives these gradients their memory, where no DataParallel does.
void form_in_bf16(LanguageModel& model, const std::vector<bool>& parameters);

// Runs all micro-batches forward and backward; gradients are then complete: summed over micro-batches and,
// with `data_parallel` (may be null), over the ranks that hold the same parameters. Returns the scaled losses
// of this rank's tokens, on the device; none on a rank without the last stage of the pipeline. Collective
// over the model's mesh; with a pipeline the micro-batches go through it by a PipelineSchedule. On one rank
// `graph` (may be null) runs the passes.
std::vector<Tensor> run_passes(const LanguageModel& model, const std::vector<DeviceBatch>& batches,
                               const ops::CrossEntropyOptions& options, DataParallel* data_parallel,
                               StepGraph* graph = nullptr);

// Output of the final norm, forward only; undefined on a rank without the last stage.
Variable run_forward(const LanguageModel& model, const DeviceBatch& batch);

}  // namespace levin
