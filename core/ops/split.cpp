// Column slices of one projection (q, k, v, u of qkvu; the two halves of the GLU) as views.
#include <numeric>

#include "core/ops.h"

namespace levin::ops {

std::vector<Variable> split(const Variable& x, const std::vector<int64_t>& widths) {
    const OpScope scope("split");
    const Tensor& value = x.value();
    LEVIN_CHECK(std::accumulate(widths.begin(), widths.end(), int64_t{0}) == value.dim(-1), "split",
                "widths {} do not sum to the width of {}", to_string(widths), to_string(value.shape()));
    std::vector<Tensor> slices;
    int64_t start = 0;
    for (const int64_t width : widths) {
        slices.push_back(value.narrow(-1, start, width));
        start += width;
    }
    return record_slices("split", x, std::move(slices));
}

}  // namespace levin::ops
