// The training loop: batches -> loss -> gradients -> update, with metrics, evaluation and checkpoints around
// it.
#pragma once

#include "parallel/world.h"
#include "trainer/config.h"

namespace levin {

enum class TrainingEnd { finished, stopped, already_finished };

// Trains until trainer.steps, or until any rank is told to stop (stop_signal.h), which saves first. Goes on
// from the newest good checkpoint of the run folder. Called by every rank. Throws Error(input) for a config
// or data that cannot work, Error(numbers) when loss or gradients are no longer finite.
TrainingEnd train(const Config& config, World& world);

}  // namespace levin
