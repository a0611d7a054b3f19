// Where a kernel runs. The CPU has one stream, which is the calling thread: a kernel there has ended when it
// returns.
#pragma once

#include <string>

namespace levin {

enum class DeviceType { cpu, cuda };

struct Device {
    DeviceType type = DeviceType::cpu;
    int index = 0;
    bool operator==(const Device&) const = default;
    bool is_cpu() const { return type == DeviceType::cpu; }
    bool is_cuda() const { return type == DeviceType::cuda; }
};

std::string to_string(const Device& device);

struct Stream {
    Device device;
    void* handle = nullptr;  // cudaStream_t on a CUDA device, unused on the CPU
};

}  // namespace levin
