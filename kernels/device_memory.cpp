#include "kernels/device_memory.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

#include "kernels/base/error.h"

namespace levin::kernels {

void* allocate(const Device& device, size_t bytes) {
    if (device.is_cuda()) return cuda::allocate(device, bytes);
    const size_t rounded = (bytes + 63) / 64 * 64;
    void* pointer = std::aligned_alloc(64, rounded == 0 ? 64 : rounded);
    if (!pointer)
        fail(Fault::internal, "memory",
             "the machine has no {:.2f} GiB of memory left; use a smaller trainer.micro_batch or "
             "trainer.sequence_length",
             static_cast<double>(bytes) / (1 << 30));
    return pointer;
}

void release(const Device& device, void* pointer) noexcept {
    if (device.is_cuda())
        cuda::release(device, pointer);
    else
        std::free(pointer);
}

void copy_bytes(const Stream& stream, const Device& to_device, void* to, const Device& from_device,
                const void* from, size_t bytes) {
    if (bytes == 0) return;
    if (to_device.is_cpu() && from_device.is_cpu())
        std::memcpy(to, from, bytes);
    else
        cuda::copy_bytes(stream, to_device, to, from_device, from, bytes);
}

Stream default_stream(const Device& device) {
    return device.is_cpu() ? Stream{device, nullptr} : cuda::default_stream(device);
}

void synchronize(const Stream& stream) {
    if (stream.device.is_cuda()) cuda::synchronize(stream);
}

void push_range(const char* name) { cuda::push_range(name); }
void pop_range() { cuda::pop_range(); }

namespace {
std::atomic<MemoryReclaimer> memory_reclaimer{nullptr};
}
void set_memory_reclaimer(MemoryReclaimer reclaimer) { memory_reclaimer = reclaimer; }
std::string reclaim_memory(const Device& device) {
    const MemoryReclaimer reclaimer = memory_reclaimer;
    return reclaimer ? reclaimer(device) : std::string{};
}

namespace {
thread_local ScratchSource* current_scratch_source = nullptr;
}
ScratchSource* scratch_source() { return current_scratch_source; }
void set_scratch_source(ScratchSource* source) { current_scratch_source = source; }

bool built_with_cuda() { return cuda::built_with_cuda(); }
int cuda_device_count(std::string* why_none) { return cuda::device_count(why_none); }
DeviceInfo cuda_device_info(int index) { return cuda::device_info(index); }

}  // namespace levin::kernels
