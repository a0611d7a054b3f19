// Lightning attention on tensor cores: the scans of lightning_scan.cuh for bf16, 64 tokens a tile, through
// mma.sync (sm_80 and later).
#pragma once

#include "kernels/base/stream.h"
#include "kernels/lightning_attention.h"

namespace levin::kernels::cuda {

// Shapes of mma_scan_fits, expanded (lightning_plan.h): no theta, activations none or silu, key_dim up to
// 256.
void mma_scan_forward(const Stream& stream, const LightningForward& args);
void mma_scan_state(const Stream& stream, const LightningState& args);
void mma_scan_backward(const Stream& stream, const LightningBackward& args);

}  // namespace levin::kernels::cuda
