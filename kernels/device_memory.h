// Memory and streams of a device, the part of a back end that is no arithmetic.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "kernels/base/stream.h"

namespace levin::kernels {

// Raw memory, 64-byte aligned on the CPU, 256 on a GPU. Throws Error(internal) that names the size when there
// is none.
void* allocate(const Device& device, size_t bytes);
void release(const Device& device, void* pointer) noexcept;

// Copies between any two devices, ordered after the work queued on `stream`; returns when `to` may be read by
// the host if either side is host memory.
void copy_bytes(const Stream& stream, const Device& to_device, void* to, const Device& from_device,
                const void* from, size_t bytes);

Stream default_stream(const Device& device);
void synchronize(const Stream& stream);

// Named ranges around the work that is queued between them, seen by Nsight Systems (NVTX); nothing without
// CUDA.
void push_range(const char* name);
void pop_range();

// Asked when a device has no memory left, before the second and last try: gives back what it only caches, and
// says for the message how much is used for what. Set once, by core.
using MemoryReclaimer = std::string (*)(const Device& device);
void set_memory_reclaimer(MemoryReclaimer reclaimer);
std::string reclaim_memory(const Device& device);

// Where the scratch memory of kernels comes from while it is set, instead of the driver's pool: work that is
// recorded for a graph would make every allocation a node of it. What was given back may be taken again at
// once: all is used on one stream, in order. Per thread; null: the driver's pool.
class ScratchSource {
public:
    virtual ~ScratchSource() = default;
    virtual void* take(size_t bytes) = 0;
    // False where it did not come from here.
    virtual bool give(void* data) noexcept = 0;
};
ScratchSource* scratch_source();
void set_scratch_source(ScratchSource* source);

struct DeviceInfo {
    std::string name, compute_capability;
    size_t total_bytes = 0, free_bytes = 0;
    int multiprocessors = 0;
};
bool built_with_cuda();
// GPUs that can be used now (0 without a driver or in a build without CUDA) and why there is none.
int cuda_device_count(std::string* why_none = nullptr);
DeviceInfo cuda_device_info(int index);

namespace cuda {  // implemented by cuda/ and, throwing "built without CUDA", by cuda_absent/
void* allocate(const Device& device, size_t bytes);
void release(const Device& device, void* pointer) noexcept;
void copy_bytes(const Stream& stream, const Device& to_device, void* to, const Device& from_device,
                const void* from, size_t bytes);
Stream default_stream(const Device& device);
void synchronize(const Stream& stream);
void push_range(const char* name);
void pop_range();
bool built_with_cuda();
int device_count(std::string* why_none);
DeviceInfo device_info(int index);
}  // namespace cuda

}  // namespace levin::kernels
