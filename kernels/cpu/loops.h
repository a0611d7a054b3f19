// How the memory-bound CPU kernels split their work.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/base/parallel_for.h"

namespace levin::kernels::cpu {

// Elements below which a second thread costs more than it brings.
constexpr int64_t kGrain = 8192;

// parallel_for over rows of `width` elements: body(row).
template <class Body>
void for_each_row(int64_t rows, int64_t width, const Body& body) {
    parallel_for(rows, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, width)),
                 [&](int64_t begin, int64_t end) {
                     for (int64_t r = begin; r < end; ++r) body(r);
                 });
}

// parallel_for over columns, for sums over rows: body(begin, end) walks all rows of its columns in order, so
// the sum does not depend on the number of threads. Borders are multiples of 16 elements: no two threads
// share a cache line.
template <class Body>
void for_each_column_range(int64_t rows, int64_t columns, const Body& body) {
    constexpr int64_t step = 16;
    const int64_t groups = (columns + step - 1) / step;
    parallel_for(groups, std::max<int64_t>(1, kGrain / (step * std::max<int64_t>(1, rows))),
                 [&](int64_t begin, int64_t end) { body(begin * step, std::min(columns, end * step)); });
}

}  // namespace levin::kernels::cpu
