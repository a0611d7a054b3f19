#include "parallel/buckets.h"

#include <algorithm>
#include <map>
#include <tuple>

namespace levin {

namespace {

constexpr int64_t kAlignment = 64;  // bytes: gradients start on cache lines, for vectorised kernels

int64_t round_up(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

}  // namespace

std::vector<BucketPlan> plan_buckets(const std::vector<Variable>& parameters,
                                     const std::vector<DType>& gradient_types,
                                     const std::vector<int64_t>& units, size_t bucket_bytes, int ranks) {
    std::vector<BucketPlan> plans;
    std::map<std::tuple<DType, DType, int64_t, int, int>, size_t>
        open;  // the bucket that still takes more, by kind
    for (size_t i = parameters.size(); i-- > 0;) {
        const Variable& parameter = parameters[i];
        LEVIN_CHECK(parameter.is_leaf() && parameter.requires_grad(), "data parallel",
                    "parameter {} is no leaf that needs a gradient", i);
        const DType gradient = gradient_types[i];
        const Device& device = parameter.value().device();
        const int64_t unit = units.empty() ? 0 : units[i];
        // A cache line of the narrower type: values and gradients share the layout.
        const auto width = static_cast<int64_t>(std::min(size_of(gradient), size_of(parameter.dtype())));
        const int64_t line = kAlignment / width;
        const int64_t count = round_up(parameter.value().count(), line);
        const std::tuple kind{parameter.dtype(), gradient, unit, static_cast<int>(device.type), device.index};
        const auto found = open.find(kind);
        const bool fits =
            found != open.end() &&
            static_cast<size_t>(plans[found->second].count + count) * size_of(gradient) <= bucket_bytes;
        if (!fits) {
            plans.push_back({gradient, parameter.dtype(), device, unit, 0, {}});
            open[kind] = plans.size() - 1;
        }
        BucketPlan& plan = plans[open[kind]];
        plan.places.push_back({i, plan.count, parameter.value().count()});
        plan.count += count;
    }
    for (BucketPlan& plan : plans) plan.count = round_up(plan.count, kAlignment / 2 * ranks);
    return plans;
}

std::vector<ParameterRange> ranges_of_rank(const BucketPlan& plan, int ranks, int rank) {
    const int64_t share = plan.count / ranks, first = share * rank, last = first + share;
    std::vector<ParameterRange> ranges;
    for (const BucketPlace& place : plan.places) {
        const int64_t begin = std::max(first, place.offset), end = std::min(last, place.offset + place.count);
        if (begin < end) ranges.push_back({place.parameter, begin - place.offset, end - begin, begin});
    }
    return ranges;
}

}  // namespace levin
