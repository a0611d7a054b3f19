// What a rank of a layout holds of a model: its part of each parameter (tensor parallelism) and its layers
// (pipeline stages).
#pragma once

#include <vector>

#include "model/parameters.h"
#include "parallel/mesh.h"

namespace levin {

// One rank's part of a parameter: ranges of rows or columns of the whole one.
struct Shard {
    Shape shape;  // of the part
    int64_t axis = 0;
    struct Range {
        int64_t global, local, count;  // along `axis`
    };
    std::vector<Range> ranges;  // ascending; rows of the part in none of them are padding, and zero
    bool is_whole(const ParameterSpec& spec) const {
        return ranges.size() == 1 && ranges[0].count == spec.shape[static_cast<size_t>(axis)];
    }
};

// The part of rank `rank` of `tp`. Each segment of rows is divided on its own. A vocabulary that tp does not
// divide is padded: every rank gets ceil(rows / tp) rows, rounded up to a multiple of 8 for the matrix units.
Shard shard_of(const ParameterSpec& spec, int64_t tp, int64_t rank);
// Elements [begin, end) of a range of a part, and their numbers in the whole tensor, counted row by row:
// element begin + i has number first + i + (column + i) / columns * gap.
struct Stretch {
    int64_t begin, end, first, column, columns, gap;
};
// Those of the range [start, start + count) of the part's elements, without padding.
std::vector<Stretch> stretches_of(const ParameterSpec& spec, const Shard& shard, int64_t start,
                                  int64_t count);
// Copies between a whole tensor and a part; padding becomes zero. Any types and devices.
Tensor take_shard(const Tensor& whole, const Shard& shard, DType dtype, const Device& device);
void put_shard(const Tensor& part, const Shard& shard, Tensor whole);
// Sets a rank's part of a parameter to its starting value, as set_initial_value does; padding becomes zero.
void set_initial_part(const ModelConfig& config, const ParameterSpec& spec, uint64_t seed, const Shard& shard,
                      Tensor part);

// Layers first .. last of a pipeline stage; `stages` = pp x virtual stages <= layers. As equal as can be: the
// head on the last stage counts as as many layers as it has parameters, since products take as long as they
// have weights.
struct StageLayers {
    int64_t first = 0, last = 0;
};
StageLayers layers_of_stage(const ModelConfig& config, int64_t stages, int64_t stage);
// Stage s runs on pipeline rank s % pp. Does this rank hold the parameter? The embedding is on the first
// stage; final norm and head are on the last, and so is a copy of a tied embedding.
bool holds_parameter(const ModelConfig& config, const ParameterSpec& spec, int64_t pp, int64_t virtual_stages,
                     int64_t pp_rank);

// Throws Error(input) when the model cannot be divided so, naming the nearest setting that works: heads and
// GLU columns must be divided evenly by tp, and every stage needs a layer.
void validate_layout(const ModelConfig& config, const Layout& layout, int64_t virtual_stages);

}  // namespace levin
