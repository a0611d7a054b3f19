#include "parallel/gpu_event.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "kernels/cuda/check.h"

namespace levin {

namespace {

// By device, and whether they are timed.
class SpareEvents {
public:
    cudaEvent_t take(int device, bool timed) {
        LEVIN_CUDA_CHECK(cudaSetDevice(device));
        const std::lock_guard lock(mutex_);
        std::vector<cudaEvent_t>& spare = spare_[{device, timed}];
        cudaEvent_t event = nullptr;
        if (spare.empty()) {
            LEVIN_CUDA_CHECK(
                cudaEventCreateWithFlags(&event, timed ? cudaEventDefault : cudaEventDisableTiming));
        } else {
            event = spare.back();
            spare.pop_back();
        }
        return event;
    }
    void give_back(int device, bool timed, cudaEvent_t event) {
        const std::lock_guard lock(mutex_);
        spare_[{device, timed}].push_back(event);
    }

private:
    std::mutex mutex_;  // the watchdog's thread forgets operations too
    std::map<std::pair<int, bool>, std::vector<cudaEvent_t>> spare_;
};

// Lives until the process ends: the watchdog's thread may outlive static destructors.
SpareEvents& spare_events() {
    static auto* all = new SpareEvents;
    return *all;
}

}  // namespace

GpuEvent::GpuEvent(int device, bool timed)
    : device_(device), timed_(timed), event_(spare_events().take(device, timed)) {}
GpuEvent::~GpuEvent() { spare_events().give_back(device_, timed_, event_); }

void GpuEvent::record(cudaStream_t stream) {
    LEVIN_CUDA_CHECK(cudaEventRecord(event_, stream));
    recorded_ = true;
}

bool GpuEvent::ended() const {
    LEVIN_CUDA_CHECK(cudaSetDevice(device_));
    const cudaError_t state = cudaEventQuery(event_);
    if (state == cudaErrorNotReady) return false;
    LEVIN_CUDA_CHECK(state);
    return true;
}

std::optional<double> ms_between(const GpuEvent& first, const GpuEvent& second) {
    if (!first.ended() || !second.recorded() || !second.ended()) return std::nullopt;
    float ms = 0;
    LEVIN_CUDA_CHECK(cudaEventElapsedTime(&ms, first.get(), second.get()));
    return std::max(0.0, static_cast<double>(ms));
}

}  // namespace levin
