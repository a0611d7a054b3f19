// Checkpoints of a model that is divided over ranks: parts go in and out by the parameter table, so that a
// run goes on at any other layout and stage of ZeRO.
#pragma once

#include <string>
#include <vector>

#include "checkpoint/native.h"
#include "model/language_model.h"

namespace levin {

// Adds `part`, which holds elements [start, start + part.count()) of this rank's tensor of `parameter` (its
// weight, a moment of the optimizer), without padding. Views, no copies.
void add_parts(std::vector<CheckpointTensor>& tensors, const std::string& group, const Parameter& parameter,
               int64_t start, const Tensor& part);
// Reads them; padding is left as it is.
void read_parts(const Checkpoint& checkpoint, const std::string& group, const Parameter& parameter,
                int64_t start, const Tensor& part);

}  // namespace levin
