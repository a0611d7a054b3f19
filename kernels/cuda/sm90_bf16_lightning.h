// Lightning attention on Hopper (sm_90a): bf16 heads of up to 128 columns, keys up to 256, activations none
// or silu.
#pragma once

#include "kernels/base/stream.h"
#include "kernels/lightning_attention.h"

namespace levin::kernels::cuda {

// Shapes of sm90_lightning_fits, expanded (lightning_plan.h).
void sm90_lightning_forward(const Stream& stream, const LightningForward& args);
void sm90_lightning_state(const Stream& stream, const LightningState& args);
void sm90_lightning_backward(const Stream& stream, const LightningBackward& args);
int64_t sm90_states_to_keep(const Stream& stream, const LightningShape& shape);

}  // namespace levin::kernels::cuda
