// The device under test: LEVIN_TEST_DEVICE, cpu (the default) or cuda. A test program with GPU tests is
// registered once for each, the second time under the label gpu.
#pragma once

#include <cstdlib>
#include <string_view>

#include "kernels/base/stream.h"

namespace levin::test {

inline bool on_gpu() {
    const char* name = std::getenv("LEVIN_TEST_DEVICE");
    return name && std::string_view(name) == "cuda";
}
inline Device device() { return on_gpu() ? Device{DeviceType::cuda, 0} : Device{}; }

}  // namespace levin::test
