// Small transfers between host and device that nobody waits for.
#pragma once

#include <memory>
#include <vector>

#include "core/tensor.h"
#include "kernels/stream_event.h"

namespace levin {

// A tensor on `device` with `count` values of `dtype` from host memory. On a GPU the values are copied to
// pinned memory first and the host goes on at once; `data` may change after the call. For batches and other
// small things: the pinned memory is kept for reuse. Not inside work that is recorded for a graph: it would
// read that memory again at every launch.
Tensor upload(const Shape& shape, DType dtype, const void* data, size_t count, const Device& device);
template <class T>
Tensor upload(const Shape& shape, const std::vector<T>& values, const Device& device) {
    return upload(shape, DTypeOf<T>::value, values.data(), values.size(), device);
}

// Scalars on their way from the device to the host: start() queues their copies, values() waits for them.
class Readout {
public:
    explicit Readout(const Device& device) : device_(device), ready_(device) {}
    ~Readout();

    // Each tensor holds one f32 or f64 value. What an earlier start() read is overwritten: call values()
    // first.
    void start(const std::vector<Tensor>& scalars);
    bool ready() const { return ready_.done(); }
    // In the order of start().
    std::vector<double> values() const;

private:
    Device device_;
    kernels::StreamEvent ready_;
    std::unique_ptr<kernels::PinnedMemory> memory_;
    std::vector<DType> types_;
};

}  // namespace levin
