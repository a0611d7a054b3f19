// Waiting for a GPU as late as possible: points in a stream's queue, and host memory that is copied to and
// from while the host goes on.
#pragma once

#include <cstddef>

#include "kernels/base/stream.h"

namespace levin::kernels {

// A point in the queue of a stream. On the CPU, where a kernel has ended when it returns, it is a time stamp.
class StreamEvent {
public:
    explicit StreamEvent(const Device& device);
    ~StreamEvent();
    StreamEvent(const StreamEvent&) = delete;
    StreamEvent& operator=(const StreamEvent&) = delete;

    // Everything queued so far lies before it. May be recorded again. Inside a stream capture it becomes a
    // part of the graph and must not be waited for.
    void record(const Stream& stream);
    // True also when it was never recorded.
    bool done() const;
    void wait() const;
    // Device time since `earlier`; waits for this one. Both were recorded.
    double ms_since(const StreamEvent& earlier) const;

private:
    Device device_;
    void* handle_ = nullptr;  // cudaEvent_t
    double seconds_ = 0;      // CPU
};

// Host memory a GPU reads and writes by itself; ordinary memory where `device` is the CPU.
class PinnedMemory {
public:
    PinnedMemory(const Device& device, size_t bytes);
    ~PinnedMemory();
    PinnedMemory(const PinnedMemory&) = delete;
    PinnedMemory& operator=(const PinnedMemory&) = delete;
    void* data() const { return data_; }
    size_t bytes() const { return bytes_; }

private:
    Device device_;
    size_t bytes_;
    void* data_;
};

// Queues a copy between memory of the stream's device and pinned memory; neither may change before it ran.
void copy_bytes_async(const Stream& stream, void* to, const void* from, size_t bytes);

namespace cuda {  // implemented by cuda/ and, throwing "built without CUDA", by cuda_absent/
void* create_event(const Device& device);
void destroy_event(void* event) noexcept;
void record_event(const Stream& stream, void* event);
bool event_done(void* event);
void wait_event(void* event);
double event_ms_since(void* event, void* earlier);
void* allocate_pinned(const Device& device, size_t bytes);
void release_pinned(void* pointer) noexcept;
void copy_bytes_async(const Stream& stream, void* to, const void* from, size_t bytes);
}  // namespace cuda

}  // namespace levin::kernels
