#include "launch/commands/bench/turns.h"

#include <algorithm>
#include <cmath>

#include "kernels/base/error.h"

namespace levin::bench {

namespace {

constexpr double kUncountedMs = 300, kCountedMs = 700;

double total_ms(const Marks& marks) { return marks.back()->ms_since(*marks.front()); }

}  // namespace

Marks run_marked(const Stream& stream, const Load& load) {
    Marks marks;
    const auto mark = [&] {
        marks.push_back(std::make_unique<kernels::StreamEvent>(stream.device));
        marks.back()->record(stream);
    };
    mark();
    load(mark);
    return marks;
}

Spread spread_of(std::vector<double> values) {
    LEVIN_CHECK(!values.empty(), "bench", "no values to take the median of");
    std::sort(values.begin(), values.end());
    // Between two neighbours in proportion.
    const auto at = [&](double share) {
        const double place = share * static_cast<double>(values.size() - 1);
        const auto below = static_cast<size_t>(place);
        const size_t above = std::min(below + 1, values.size() - 1);
        return values[below] + (place - static_cast<double>(below)) * (values[above] - values[below]);
    };
    return {at(0.25), at(0.5), at(0.75)};
}

std::vector<LoadTimes> by_turns(const Stream& stream, const std::vector<Load>& loads, int turns) {
    struct Runs {
        int64_t uncounted = 0, counted = 1;
    };
    std::vector<Runs> of_turn(loads.size());
    if (stream.device.is_cuda())
        for (size_t i = 0; i < loads.size(); ++i) {
            const double ms = total_ms(run_marked(stream, loads[i]));
            of_turn[i] = {std::lround(kUncountedMs / ms), std::max(1L, std::lround(kCountedMs / ms))};
        }
    // Times are read when all is queued: a device that waits for the host cools down.
    std::vector<std::vector<Marks>> marks(loads.size());
    for (int turn = 0; turn < turns; ++turn)
        for (size_t i = 0; i < loads.size(); ++i) {
            for (int64_t run = 0; run < of_turn[i].uncounted; ++run) loads[i]([] {});
            for (int64_t run = 0; run < of_turn[i].counted; ++run)
                marks[i].push_back(run_marked(stream, loads[i]));
        }
    std::vector<LoadTimes> result(loads.size());
    for (size_t i = 0; i < loads.size(); ++i) {
        LoadTimes& times = result[i];
        times.parts.resize(marks[i].front().size() - 1);
        for (const Marks& run : marks[i]) {
            times.runs.push_back(total_ms(run));
            for (size_t part = 0; part < times.parts.size(); ++part)
                times.parts[part].push_back(run[part + 1]->ms_since(*run[part]));
        }
        const auto counted = static_cast<std::ptrdiff_t>(of_turn[i].counted);
        for (auto begin = times.runs.cbegin(); begin != times.runs.cend(); begin += counted)
            times.turns.push_back(spread_of({begin, begin + counted}).median);
    }
    return result;
}

}  // namespace levin::bench
