// What the device could do at most, to say what share of it training reaches.
#pragma once

#include <string>

#include "kernels/base/dtype.h"
#include "kernels/base/stream.h"

namespace levin {

struct DevicePeak {
    double flops_per_second = 0;
    std::string source;  // "measured, f32 GEMM 1536^3" or "data sheet, H100 bf16 dense"
};

// GPUs known by name: the data sheet's dense rate of the type. Otherwise the best of a few square matrix
// products in this process, with its threads (about a tenth of a second).
DevicePeak device_peak(const Device& device, DType dtype);
// Best rate in FLOP/s of a square matrix product of this size, over `repeats` runs.
double measure_gemm_rate(const Device& device, DType dtype, int64_t size, int repeats);

}  // namespace levin
