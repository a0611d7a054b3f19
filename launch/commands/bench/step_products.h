// The matrix products of an update alone, and how much of the update's time they are.
#pragma once

#include <string>
#include <vector>

#include "kernels/gemm.h"
#include "launch/commands/bench/bench.h"

namespace levin::bench {

// What makes a product the same for a table: its transposes, shape and output.
std::string describe(const kernels::Gemm& product);

// The products of an update on operands of their own, to be queued as often as wanted: random values, and
// for each product other memory than for the last ones, so that they come from memory and not from a cache.
class StepProducts {
public:
    // `observed`: those of one update, in order. The chunks of the head's products (one side is `vocab`)
    // count as whole products over the `tokens` of a micro-batch, of which there are `micro_batches`.
    StepProducts(const Device& device, const std::vector<kernels::Gemm>& observed, int64_t vocab,
                 int64_t tokens, int64_t micro_batches);

    // Queues all products of an update, one after the other.
    void run() const;
    double flops() const;
    // The time of each kind alone: one update's products, after some that warm the device.
    Table table() const;

private:
    Device device_;
    std::vector<kernels::Gemm> products_;
    Tensor a_, b_, c_;
};

}  // namespace levin::bench
