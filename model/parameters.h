// The one table of parameters. Initialisation, checkpoints, resharding, Hugging Face conversion, weight decay
// and memory plans all read it; a parameter exists nowhere else by name.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/tensor.h"
#include "model/config.h"

namespace levin {

// One Hugging Face tensor inside a parameter. Pieces are stacked along axis 0 in order; `rows` of the
// parameter are this piece's. hf_shape is the shape in the file (theta is [heads, 1, head_dim] there, [heads,
// head_dim] here).
struct ParameterPiece {
    std::string hf_name;
    Shape hf_shape;
    int64_t rows;
};

enum class Initialization { normal, zeros, ones, lrpe_theta };
// How tensor parallelism divides a parameter: rows within each segment (column-parallel linear), columns
// (row-parallel linear), or not at all.
enum class Sharding { replicated, rows, columns };

struct ParameterSpec {
    std::string name;                    // global, e.g. "layers.3.attention.qkvu"
    Shape shape;                         // global
    std::vector<ParameterPiece> pieces;  // at least one
    Initialization initialization = Initialization::normal;
    bool weight_decay = false;      // AdamW decays matrices (the embedding included), not vectors, not theta
    bool keep_accumulator = false;  // stays f32 in a bf16 model (theta: its angles grow with position)
    Sharding sharding = Sharding::replicated;
    std::vector<int64_t> segments;  // rows of each independently divided part (q, k, v, u), empty: one part
    // Works on the residual stream, between blocks. Where the tokens of that are scattered over ranks, each
    // has the gradient of its tokens.
    bool between_blocks = false;
    int64_t layer = -1;  // -1: embedding, final norm, head
};

// In a fixed order: embedding, layers, final norm, head (absent when tied).
std::vector<ParameterSpec> parameter_table(const ModelConfig& config);

// Sets a part of a parameter, [start, start + part.dim(axis)) along `axis` and all of the other one, to its
// starting value: a function of (seed, name, index in the whole parameter) only, in f32, with the same bits
// on every device. The part is made where it lies. The row of pad_token_id in the embedding starts at zero.
void set_initial_value(const ModelConfig& config, const ParameterSpec& spec, uint64_t seed, int64_t axis,
                       int64_t start, Tensor part);

}  // namespace levin
