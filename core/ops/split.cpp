// Column slices of one projection (q, k, v, u of qkvu; the two halves of the GLU) as views; runs of rows.
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

std::vector<Variable> split_rows(const Variable& x, const std::vector<int64_t>& rows) {
    const OpScope scope("split_rows");
    LEVIN_CHECK(std::accumulate(rows.begin(), rows.end(), int64_t{0}) == x.dim(0), "split_rows",
                "{} rows are not those of {}", to_string(rows), to_string(x.shape()));
    if (rows.size() == 1) return {x};
    const Tensor value = x.value().contiguous();
    std::vector<Tensor> parts;
    int64_t begin = 0;
    for (const int64_t count : rows) {
        parts.push_back(value.narrow(0, begin, count));
        begin += count;
    }
    return record("split_rows", {x}, std::move(parts),
                  [rows](std::span<const Tensor> gradients, Gradients& inputs) {
                      const Tensor whole = inputs.buffer(0);
                      int64_t begin = 0;
                      for (size_t i = 0; i < rows.size(); ++i) {
                          Tensor part = whole.narrow(0, begin, rows[i]);
                          if (gradients[i].defined())
                              part.copy_from(gradients[i]);
                          else
                              part.fill(0);
                          begin += rows[i];
                      }
                      inputs.add(0, whole);
                  });
}

Variable join_rows(const std::vector<Variable>& parts) {
    const OpScope scope("join_rows");
    if (parts.size() == 1) return parts[0];
    Shape shape = parts.at(0).shape();
    shape[0] = 0;
    std::vector<int64_t> begins;
    for (const Variable& part : parts) {
        begins.push_back(shape[0]);
        shape[0] += part.dim(0);
    }
    const Tensor whole = Tensor::empty(shape, parts[0].dtype(), parts[0].value().device());
    for (size_t i = 0; i < parts.size(); ++i)
        whole.narrow(0, begins[i], parts[i].dim(0)).copy_from(parts[i].value());
    begins.push_back(shape[0]);
    return record("join_rows", parts, whole, [begins](const Tensor& dy, Gradients& inputs) {
        for (size_t i = 0; i + 1 < begins.size(); ++i)
            inputs.add(i, dy.narrow(0, begins[i], begins[i + 1] - begins[i]));
    });
}

}  // namespace levin::ops
