// Several loads of a device measured by turns, each at the clocks that the device holds under it.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "kernels/stream_event.h"

namespace levin::bench {

// Median and quartiles.
struct Spread {
    double lower = 0, median = 0, upper = 0;
};
Spread spread_of(std::vector<double> values);

// Queues its work once, and calls `mark` behind each part of it, at its end too.
using Load = std::function<void(const std::function<void()>& mark)>;

// A point in time before a run, and one behind each part.
using Marks = std::vector<std::unique_ptr<kernels::StreamEvent>>;
Marks run_marked(const Stream& stream, const Load& load);

// Of one load, in ms.
struct LoadTimes {
    std::vector<std::vector<double>> parts;  // [part][run, of all turns]
    std::vector<double> runs;                // the whole load
    std::vector<double> turns;               // median of each turn's runs
};

// Lets the loads take turns, all queued without a pause. A turn on a GPU is 0.3 s that do not count, as the
// power that a load takes sets the clock a moment later, and 0.7 s that do; on a CPU one run.
std::vector<LoadTimes> by_turns(const Stream& stream, const std::vector<Load>& loads, int turns);

}  // namespace levin::bench
