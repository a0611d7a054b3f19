#include "trainer/sharded_state.h"

namespace levin {

namespace {

// The box of the whole tensor that a range of a shard is.
struct Box {
    Shape offset, shape;
};
Box box_of(const Parameter& parameter, const Shard::Range& range) {
    Box box{Shape(parameter.shard.shape.size(), 0), parameter.shard.shape};
    const auto axis = static_cast<size_t>(parameter.shard.axis);
    box.offset[axis] = range.global;
    box.shape[axis] = range.count;
    return box;
}

}  // namespace

void add_parts(std::vector<CheckpointTensor>& tensors, const std::string& group, const Parameter& parameter,
               const Tensor& part) {
    for (const Shard::Range& range : parameter.shard.ranges)
        tensors.push_back({.group = group,
                           .name = parameter.spec.name,
                           .value = part.narrow(parameter.shard.axis, range.local, range.count),
                           .global_shape = parameter.spec.shape,
                           .offset = box_of(parameter, range).offset});
}

void read_parts(const Checkpoint& checkpoint, const std::string& group, const Parameter& parameter,
                const Tensor& part) {
    for (const Shard::Range& range : parameter.shard.ranges) {
        const Box box = box_of(parameter, range);
        part.narrow(parameter.shard.axis, range.local, range.count)
            .copy_from(checkpoint.read_part(group, parameter.spec.name, box.offset, box.shape));
    }
}

}  // namespace levin
