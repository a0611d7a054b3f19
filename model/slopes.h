// Decay slopes of a lightning layer.
#pragma once

#include <vector>

#include "model/config.h"

namespace levin {

// Slope of each head of `layer`: a token's weight falls by exp(-slope) per step. Formed in float32 as the
// published code does, also for float64 runs: s_j and the layer's factor are rounded to float32 each, then
// multiplied.
//   alibi                 s_j (1 - layer/(L-1) + 1e-5); s_j = 2^(-8(j+1)/H) for H a power of two, else the
//   slopes of the
//                         power of two below, followed by every second one of the power above
//   alibi-no-temperature  s_j
//   paper                 (8 j / H) (1 - layer/L)
//   none                  0
std::vector<float> decay_slopes(const ModelConfig& config, int64_t layer);

}  // namespace levin
