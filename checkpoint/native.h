// Native checkpoints: a folder step_00000100 with safetensors files and a manifest (proto/manifest.proto)
// that holds the size and hash of every file and the place of every tensor.
//
// A checkpoint is written into .tmp-step_00000100, made durable, then renamed: it is there whole or not at
// all. Tensors carry their global name, global shape and the part held, so that one saved by N ranks is read
// by any number.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace levin {

// Groups the trainer uses. A reader may find any of them missing (a converted model has weights only).
inline constexpr const char* kModelGroup = "model";  // master weights
inline constexpr const char* kFirstMomentGroup = "adamw.m";
inline constexpr const char* kSecondMomentGroup = "adamw.v";

// CheckpointState::fields of a converted model: the type its numbers had before they were widened ("bf16").
inline constexpr const char* kSourceDtypeField = "source_dtype";

// A tensor, or the part of one that this rank holds. Any device; strided is fine.
struct CheckpointTensor {
    std::string group;  // one file per group and rank
    std::string name;   // global parameter name
    Tensor value;
    Shape global_shape = {};  // empty: value's own
    Shape offset = {};        // where the part starts in each axis; empty: at zero
    // Instead of `value`, for what need not be in memory all at once: called when the tensor is written, must
    // return `dtype` and `shape`.
    std::function<Tensor()> produce = {};
    DType dtype = DType::f32;
    Shape shape = {};
};

// What a checkpoint knows besides its tensors.
struct CheckpointState {
    int64_t step = 0;         // updates done
    int64_t tokens = 0;       // tokens trained on
    int64_t next_sample = 0;  // number of the first sample not yet used
    uint64_t seed = 0;
    std::string model_json;                     // model_config_to_json() of checkpoint/huggingface.h
    std::string config_yaml;                    // the resolved run configuration, for people and reports
    std::map<std::string, std::string> fields;  // anything else the trainer wants back: run identity, ...
};

using CheckpointLog = std::function<void(const std::string& line)>;

struct SaveOptions {
    int64_t keep = 3;  // newest checkpoints kept after this one is complete; 0: all
    int rank = 0, ranks = 1;
    // Over all ranks: what went wrong on the first rank where anything did, on each; "" when all is well
    // (first_text() of parallel/agreement.h). Needed when ranks > 1.
    std::function<std::string(const std::string& mine)> first_problem = {};
    CheckpointLog log = {};  // notes such as "removed stale ..."; may be empty
};

// "step_00000100"
std::string checkpoint_name(int64_t step);

// Saves into folder/step_XXXXXXXX and returns that path. Called by every rank with the same folder (on a file
// system they share) and state; each passes the tensors, or parts, it holds, and no part twice. Throws
// Error(internal) with the same message on every rank when any file cannot be written (full disk): the
// temporary folder is then gone, the earlier checkpoints are untouched, and training can go on. A checkpoint
// of the same step is replaced at one stroke.
std::string save_checkpoint(const std::string& folder, const CheckpointState& state,
                            const std::vector<CheckpointTensor>& tensors, const SaveOptions& options = {});

// An opened checkpoint.
class Checkpoint {
public:
    // Reads the manifest and checks it and every file's size, and with `hashes` every file's content. Throws
    // Error(input) that says which file is wrong and how.
    static Checkpoint open(const std::string& path, bool hashes = true);
    ~Checkpoint();
    Checkpoint(Checkpoint&&) noexcept;
    Checkpoint& operator=(Checkpoint&&) noexcept;

    const std::string& path() const;
    const CheckpointState& state() const;
    int64_t created_unix_seconds() const;
    uint64_t bytes() const;  // of all files
    bool has_group(const std::string& group) const;
    // Names of a group's tensors in the order they were saved.
    std::vector<std::string> names(const std::string& group) const;
    bool contains(const std::string& group, const std::string& name) const;
    // Throw Error(input) when there is no such tensor.
    const Shape& shape(const std::string& group, const std::string& name) const;
    DType dtype(const std::string& group, const std::string& name) const;
    // The whole tensor, put together from the parts it was saved in; in host memory.
    Tensor read(const std::string& group, const std::string& name) const;
    // Only the part that starts at `offset` and has `shape`.
    Tensor read_part(const std::string& group, const std::string& name, const Shape& offset,
                     const Shape& shape) const;

private:
    struct Contents;
    explicit Checkpoint(std::unique_ptr<Contents> contents);
    std::unique_ptr<Contents> contents_;
};

// The newest checkpoint of a folder whose sizes and hashes are all right. Each newer bad one is reported
// through `log` with its reason and skipped. Nothing when the folder is missing or holds none; Error(input)
// when it holds some but none is good.
std::optional<Checkpoint> open_newest_checkpoint(const std::string& folder, const CheckpointLog& log = {});

struct CheckpointSummary {
    std::string path;
    int64_t step = 0;
    uint64_t bytes = 0;
    int64_t created_unix_seconds = 0;
    std::string problem;  // empty: good
};
// Every step_* folder, ascending by step. hashes: also check the files' contents.
std::vector<CheckpointSummary> list_checkpoints(const std::string& folder, bool hashes);

}  // namespace levin
