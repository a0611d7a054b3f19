#include "launch/commands/options.h"

#include "kernels/base/error.h"
#include "kernels/device_memory.h"

namespace levin {

Device parse_device(const std::string& name) {
    if (name == "cpu") return {};
    const bool numbered = name.starts_with("cuda:") && name.size() > 5 && name.size() < 9 &&
                          name.find_first_not_of("0123456789", 5) == std::string::npos;
    LEVIN_REQUIRE(name == "cuda" || numbered, "device", "unknown device '{}': use cpu, cuda or cuda:N", name);
    const int index = numbered ? std::stoi(name.substr(5)) : 0;
    std::string why;
    const int count = kernels::cuda_device_count(&why);
    LEVIN_REQUIRE(count > 0, "device", "{} was asked for, but {}; use --device cpu (trainer.device=cpu)",
                  name, why);
    LEVIN_REQUIRE(index < count, "device", "{} was asked for, but there are {} GPUs, numbered from 0", name,
                  count);
    return {DeviceType::cuda, index};
}

DType parse_float_type(const std::string& name) {
    LEVIN_REQUIRE(name == "f64" || name == "f32" || name == "bf16", "dtype",
                  "unknown type '{}': use f64, f32 or bf16", name);
    return dtype_from_string(name);
}

}  // namespace levin
