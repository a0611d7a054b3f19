#include "trainer/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "kernels/base/error.h"

namespace levin {

double learning_rate_at(const OptimizerConfig& optimizer, const ScheduleConfig& schedule, int64_t total_steps,
                        int64_t step) {
    LEVIN_CHECK(step >= 0 && total_steps > 0, "schedule", "step {} of {}", step, total_steps);
    const double high = optimizer.learning_rate, low = optimizer.final_learning_rate();
    const int64_t warmup = schedule.warmup_steps;
    if (step < warmup) return high * static_cast<double>(step + 1) / static_cast<double>(warmup);
    if (schedule.type == ScheduleType::constant) return high;
    if (step >= total_steps) return low;
    if (schedule.type == ScheduleType::wsd) {
        const int64_t wanted =
            schedule.decay_steps > 0 ? schedule.decay_steps : std::max<int64_t>(1, total_steps / 10);
        const int64_t length = std::min(wanted, total_steps - warmup), begin = total_steps - length;
        if (step < begin) return high;
        return std::lerp(high, low, static_cast<double>(step - begin + 1) / static_cast<double>(length));
    }
    const double done = static_cast<double>(step - warmup) / static_cast<double>(total_steps - warmup);
    if (schedule.type == ScheduleType::linear) return std::lerp(high, low, done);
    return low + 0.5 * (high - low) * (1.0 + std::cos(std::numbers::pi * done));
}

}  // namespace levin
