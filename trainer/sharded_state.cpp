#include "trainer/sharded_state.h"

#include <algorithm>

namespace levin {

namespace {

// A rectangle of the whole tensor and the memory that holds it.
struct Box {
    Tensor part;
    Shape offset;
};

struct Rectangle {
    Shape offset, shape;
    int64_t first;  // element of the tensor, counted row by row
};

// The at most three rectangles that elements [start, start + count) of a vector or matrix are: the end of a
// row, whole rows, the beginning of a row.
std::vector<Rectangle> rectangles_of(const Shape& shape, int64_t start, int64_t count) {
    if (shape.size() == 1) return {{{start}, {count}, start}};
    LEVIN_CHECK(shape.size() == 2, "checkpoint", "a parameter of shape {}", to_string(shape));
    const int64_t columns = shape[1], end = start + count;
    std::vector<Rectangle> result;
    while (start < end) {
        const int64_t row = start / columns, column = start % columns;
        const bool whole = column == 0 && end - start >= columns;
        const int64_t rows = whole ? (end - start) / columns : 1;
        const int64_t width = whole ? columns : std::min(columns - column, end - start);
        result.push_back({{row, column}, {rows, width}, start});
        start += rows * width;
    }
    return result;
}

std::vector<Box> boxes_of(const Parameter& parameter, int64_t start, const Tensor& part) {
    std::vector<Box> boxes;
    const Shard& shard = parameter.shard;
    const auto axis = static_cast<size_t>(shard.axis);
    const Tensor flat = part.view({part.count()});
    for (const Rectangle& rectangle : rectangles_of(shard.shape, start, part.count())) {
        const Tensor rows =
            flat.narrow(0, rectangle.first - start, element_count(rectangle.shape)).view(rectangle.shape);
        for (const Shard::Range& range : shard.ranges) {
            const int64_t begin = std::max(rectangle.offset[axis], range.local);
            const int64_t end =
                std::min(rectangle.offset[axis] + rectangle.shape[axis], range.local + range.count);
            if (begin >= end) continue;
            Shape offset = rectangle.offset;
            offset[axis] = range.global + begin - range.local;
            boxes.push_back({rows.narrow(shard.axis, begin - rectangle.offset[axis], end - begin), offset});
        }
    }
    return boxes;
}

}  // namespace

void add_parts(std::vector<CheckpointTensor>& tensors, const std::string& group, const Parameter& parameter,
               int64_t start, const Tensor& part) {
    for (const Box& box : boxes_of(parameter, start, part))
        tensors.push_back({.group = group,
                           .name = parameter.spec.name,
                           .value = box.part,
                           .global_shape = parameter.spec.shape,
                           .offset = box.offset});
}

void read_parts(const Checkpoint& checkpoint, const std::string& group, const Parameter& parameter,
                int64_t start, const Tensor& part) {
    for (Box& box : boxes_of(parameter, start, part))
        box.part.copy_from(checkpoint.read_part(group, parameter.spec.name, box.offset, box.part.shape()));
}

}  // namespace levin
