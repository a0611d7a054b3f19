// Learning-rate schedules.
#pragma once

#include <cstdint>

#include "trainer/config.h"

namespace levin {

// Learning rate of update `step`, 0 .. total_steps - 1. With w = warmup_steps, T = total_steps, t = step:
//   t < w      learning_rate * (t + 1) / w, whatever the type; w may exceed T
//   cosine     low + (high - low) (1 + cos(pi (t - w) / (T - w))) / 2
//   linear     high + (low - high) (t - w) / (T - w)
//   constant   high
//   wsd        high; over the last n = decay_steps steps high + (low - high) (t - (T - n) + 1) / n, so that
//   the last
//              step has `low` (warm-up, stable, decay); the decay never begins before the warm-up's end
// A step beyond the run has the last value of the formula (low; constant: high).
double learning_rate_at(const OptimizerConfig& optimizer, const ScheduleConfig& schedule, int64_t total_steps,
                        int64_t step);

}  // namespace levin
