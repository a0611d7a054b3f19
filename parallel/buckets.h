// How parameters are laid out in flat buckets, and which range of each a rank keeps (ZeRO). Knows no
// communication: a rule on sizes alone, the same on every rank.
#pragma once

#include <vector>

#include "core/autograd.h"

namespace levin {

struct BucketPlace {
    size_t parameter;
    int64_t offset, count;  // elements within the bucket; offsets are multiples of a cache line
};

struct BucketPlan {
    DType gradient_type, value_type;
    Device device;
    int64_t unit;       // the parameters' unit, 0 where nobody gave one
    int64_t count = 0;  // elements, padding included: a multiple of ranks * a cache line
    std::vector<BucketPlace> places;
};

// Buckets in the order backward completes them (the reverse of the parameters). A bucket holds about
// `bucket_bytes` of gradients of one type and unit; a larger parameter gets its own. By parameter: the type
// of its gradient, and its unit (or empty).
std::vector<BucketPlan> plan_buckets(const std::vector<Variable>& parameters,
                                     const std::vector<DType>& gradient_types,
                                     const std::vector<int64_t>& units, size_t bucket_bytes, int ranks);

// A range of a parameter's elements.
struct ParameterRange {
    size_t parameter;
    int64_t start, count;
    int64_t offset;  // of its first element in the bucket
};
// What of the bucket's parameters lies in the share of `rank`, the rank-th of `ranks` equal parts.
std::vector<ParameterRange> ranges_of_rank(const BucketPlan& plan, int ranks, int rank);

}  // namespace levin
