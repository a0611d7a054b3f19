// What a training step is made of: its matrix products, and the time of every kernel family.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernels/gemm.h"
#include "kernels/observer.h"
#include "kernels/stream_event.h"
#include "launch/commands/bench/bench.h"

namespace levin::bench {

// Sees one update and keeps the shapes of its products and, if wanted, the times of all kernels.
class StepObserver : public kernels::KernelObserver {
public:
    StepObserver(const Device& device, bool with_times);
    ~StepObserver() override;
    void before(const char* name, const Stream& stream, const void* args) override;
    void after(const char* name, const Stream& stream) override;

    const std::vector<kernels::Gemm>& products() const { return products_; }
    // A table by kernel (products by shape), the longest first, with its share of `update_ms`.
    void print(bool json, double update_ms) const;

private:
    struct Call {
        std::string name;
        std::unique_ptr<kernels::StreamEvent> start, stop;
    };
    Device device_;
    bool with_times_;
    kernels::KernelObserver* previous_;
    std::vector<kernels::Gemm> products_;
    std::vector<Call> calls_;
};

}  // namespace levin::bench
