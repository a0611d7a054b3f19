// Checkpoints of a model that is divided over ranks: parts go in and out by the parameter table, so that a
// run goes on at any other layout.
#pragma once

#include <string>
#include <vector>

#include "checkpoint/native.h"
#include "model/language_model.h"

namespace levin {

// Adds this rank's part of a tensor that belongs to `parameter` (its weight, a moment of the optimizer),
// without padding. Views, no copies.
void add_parts(std::vector<CheckpointTensor>& tensors, const std::string& group, const Parameter& parameter,
               const Tensor& part);
// Reads this rank's part; padding is left as it is.
void read_parts(const Checkpoint& checkpoint, const std::string& group, const Parameter& parameter,
                const Tensor& part);

}  // namespace levin
