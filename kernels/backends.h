// Declarations of every back end, made from kernels.def. Included by back ends and dispatch.cpp only.
#pragma once

#include "kernels/cross_entropy.h"
#include "kernels/decode.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/gemm.h"
#include "kernels/lightning_attention.h"
#include "kernels/norm.h"
#include "kernels/optimizer.h"
#include "kernels/position.h"
#include "kernels/random.h"
#include "kernels/rank_parts.h"
#include "kernels/softmax_attention.h"
#include "kernels/srms_norm.h"

namespace levin::kernels {

namespace cpu {
#define LEVIN_KERNEL(name, Args) void name(const Args& args);
#include "kernels/kernels.def"
#undef LEVIN_KERNEL
}  // namespace cpu

namespace cuda {
#define LEVIN_KERNEL(name, Args) void name(const Stream& stream, const Args& args);
#include "kernels/kernels.def"
#undef LEVIN_KERNEL
int64_t lightning_states_to_keep(const Stream& stream, const LightningForward& args);
}  // namespace cuda

}  // namespace levin::kernels
