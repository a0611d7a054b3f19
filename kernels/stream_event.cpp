#include "kernels/stream_event.h"

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <new>

namespace levin::kernels {

StreamEvent::StreamEvent(const Device& device) : device_(device) {
    if (device_.is_cuda()) handle_ = cuda::create_event(device_);
}
StreamEvent::~StreamEvent() {
    if (handle_) cuda::destroy_event(handle_);
}
void StreamEvent::record(const Stream& stream) {
    if (handle_)
        cuda::record_event(stream, handle_);
    else
        seconds_ = std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
bool StreamEvent::done() const { return !handle_ || cuda::event_done(handle_); }
void StreamEvent::wait() const {
    if (handle_) cuda::wait_event(handle_);
}
double StreamEvent::ms_since(const StreamEvent& earlier) const {
    return handle_ ? cuda::event_ms_since(handle_, earlier.handle_) : (seconds_ - earlier.seconds_) * 1e3;
}

PinnedMemory::PinnedMemory(const Device& device, size_t bytes)
    : device_(device),
      bytes_(bytes),
      data_(device.is_cuda() ? cuda::allocate_pinned(device, bytes) : std::malloc(bytes)) {
    if (!data_) throw std::bad_alloc();
}
PinnedMemory::~PinnedMemory() {
    if (device_.is_cuda())
        cuda::release_pinned(data_);
    else
        std::free(data_);
}

void copy_bytes_async(const Stream& stream, void* to, const void* from, size_t bytes) {
    if (bytes == 0) return;
    if (stream.device.is_cuda())
        cuda::copy_bytes_async(stream, to, from, bytes);
    else
        std::memcpy(to, from, bytes);
}

}  // namespace levin::kernels
