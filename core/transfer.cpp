#include "core/transfer.h"

#include <cstring>
#include <map>
#include <mutex>

#include "kernels/device_memory.h"

namespace levin {

namespace {

// Pinned blocks of one device, each with the event after its last copy.
class Staging {
public:
    explicit Staging(const Device& device) : device_(device) {}

    void copy(const Stream& stream, void* to, const void* from, size_t bytes) {
        std::lock_guard lock(mutex_);
        Block* block = nullptr;
        for (const auto& candidate : blocks_)
            if (candidate->memory.bytes() >= bytes && candidate->copied.done()) {
                block = candidate.get();
                break;
            }
        if (!block) {
            size_t size = 4096;
            while (size < bytes) size *= 2;
            blocks_.push_back(std::make_unique<Block>(device_, size));
            block = blocks_.back().get();
        }
        std::memcpy(block->memory.data(), from, bytes);
        kernels::copy_bytes_async(stream, to, block->memory.data(), bytes);
        block->copied.record(stream);
    }

private:
    struct Block {
        Block(const Device& device, size_t bytes) : memory(device, bytes), copied(device) {}
        kernels::PinnedMemory memory;
        kernels::StreamEvent copied;
    };
    Device device_;
    std::mutex mutex_;
    std::vector<std::unique_ptr<Block>> blocks_;
};

// Lives until the process ends, like the caches of device memory.
Staging& staging_of(const Device& device) {
    static std::mutex mutex;
    static auto* all = new std::map<int, Staging>;
    std::lock_guard lock(mutex);
    return all->try_emplace(device.index, device).first->second;
}

}  // namespace

Tensor upload(const Shape& shape, DType dtype, const void* data, size_t count, const Device& device) {
    if (device.is_cpu()) return Tensor::from_host(shape, dtype, data, count, device);
    LEVIN_CHECK(!MemoryPool::in_use(device), "upload", "{} values from the host inside a recorded step",
                count);
    Tensor tensor = Tensor::empty(shape, dtype, device);
    LEVIN_CHECK(static_cast<size_t>(tensor.count()) == count, "upload", "{} values for shape {}", count,
                to_string(shape));
    if (count > 0) staging_of(device).copy(tensor.stream(), tensor.data(), data, tensor.bytes());
    return tensor;
}

Readout::~Readout() {
    try {
        ready_.wait();  // a copy may still be writing
    } catch (const Error&) {
        // the device failed: nothing writes any more
    }
}

void Readout::start(const std::vector<Tensor>& scalars) {
    if (!memory_ || memory_->bytes() < scalars.size() * sizeof(double)) {
        ready_.wait();
        memory_ = std::make_unique<kernels::PinnedMemory>(device_, 2 * (scalars.size() + 8) * sizeof(double));
    }
    types_.clear();
    auto* slots = static_cast<double*>(memory_->data());
    for (const Tensor& scalar : scalars) {
        LEVIN_CHECK(scalar.count() == 1 && scalar.device() == device_ &&
                        (scalar.dtype() == DType::f32 || scalar.dtype() == DType::f64),
                    "readout", "{} values of {} on {}: one f32 or f64 on {} is expected", scalar.count(),
                    to_string(scalar.dtype()), to_string(scalar.device()), to_string(device_));
        kernels::copy_bytes_async(scalar.stream(), slots + types_.size(), scalar.data(), scalar.bytes());
        types_.push_back(scalar.dtype());
    }
    ready_.record(kernels::default_stream(device_));
}

std::vector<double> Readout::values() const {
    ready_.wait();
    std::vector<double> result;
    for (size_t i = 0; i < types_.size(); ++i) {
        const auto* slot = static_cast<const double*>(memory_->data()) + i;
        if (types_[i] == DType::f64) {
            result.push_back(*slot);
        } else {
            float value;
            std::memcpy(&value, slot, sizeof value);
            result.push_back(value);
        }
    }
    return result;
}

}  // namespace levin
