// Points in the streams of a GPU, for what communicates there: the end of an operation, by which streams wait
// for each other and times are told.
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <optional>

namespace levin {

// Its CUDA event is used again when it goes: a step of training takes a few hundred. It may go while streams
// still wait for it: they wait for what was recorded when they were told to.
class GpuEvent {
public:
    // `timed`: it knows when it happened.
    GpuEvent(int device, bool timed);
    ~GpuEvent();
    GpuEvent(const GpuEvent&) = delete;
    GpuEvent& operator=(const GpuEvent&) = delete;

    void record(cudaStream_t stream);
    bool recorded() const { return recorded_; }
    bool timed() const { return timed_; }
    // Also from the watchdog's thread, which has no device of its own.
    bool ended() const;
    cudaEvent_t get() const { return event_; }

private:
    int device_;
    bool timed_;
    cudaEvent_t event_;
    std::atomic<bool> recorded_{false};
};

// From one timed event to another one, 0 where the second came first; nullopt until both have happened.
std::optional<double> ms_between(const GpuEvent& first, const GpuEvent& second);

}  // namespace levin
