// Values that several commands take.
#pragma once

#include <string>

#include "kernels/base/dtype.h"
#include "kernels/base/stream.h"

namespace levin {

// "cpu", "cuda" or "cuda:1". Throws Error(input) in one clear line when there is no such device.
Device parse_device(const std::string& name);
// "f64", "f32" or "bf16".
DType parse_float_type(const std::string& name);

}  // namespace levin
