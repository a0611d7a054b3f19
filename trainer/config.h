// The configuration of a run: one plain struct per section of the YAML file. Every key is declared once, with
// its documentation, default and range, in trainer/schema.cpp; docs/config.md is generated from there.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/base/dtype.h"
#include "kernels/base/stream.h"
#include "model/config.h"
#include "parallel/mesh.h"

namespace levin {

struct RunConfig {
    std::string folder;
    std::string name;
    bool operator==(const RunConfig&) const = default;
};

struct DataSource {
    std::string prefix;  // PREFIX.bin and PREFIX.idx
    double weight = 0;   // relative share of the samples; 0: none given
    bool operator==(const DataSource&) const = default;
};

struct DataConfig {
    std::vector<DataSource> train;
    std::vector<DataSource> validation;  // empty: no evaluation
    bool shuffle = true;
    bool packed_documents = false;  // the attention state restarts at every document border
    int64_t prefetch = 4;           // micro-batches read ahead
    bool operator==(const DataConfig&) const = default;
};

enum class Recompute { none, selective, full };
// `automatic`: where it pays.
enum class Switch { automatic, on, off };

struct TrainerConfig {
    int64_t steps = 1000;
    int64_t seed = 1234;
    int64_t threads = 0;  // per rank; 0: all cores / ranks on this host
    DeviceType device = DeviceType::cpu;
    DType precision = DType::f32;  // of the arithmetic; master weights are f32 (f64 with f64)
    int64_t sequence_length = 1024;
    int64_t micro_batch = 1;   // sequences per rank and pass
    int64_t global_batch = 8;  // sequences per update over all ranks
    Recompute recompute = Recompute::selective;
    int64_t recompute_slice = 0;  // tokens of a layer handled at one time with `full`; 0: all
    Switch step_graph = Switch::automatic;
    double clip_grad_norm = 1.0;  // 0: no clipping
    double z_loss = 0.0;
    int64_t eval_every = 0;         // steps; 0: only at the end
    int64_t eval_batches = 16;      // global batches; 0: the whole validation set
    int64_t log_every = 10;         // steps between plain progress lines
    int64_t loss_chunk_tokens = 0;  // tokens whose logits exist at one time; 0: chosen by the program
    bool operator==(const TrainerConfig&) const = default;
};

// What numbers of f32 arithmetic are kept or sent as: as they are, or rounded to bf16.
enum class StoredType { f32, bf16 };

struct OptimizerConfig {
    double learning_rate = 3e-4;
    double min_learning_rate = -1;  // below 0: a tenth of learning_rate
    double beta1 = 0.9;
    double beta2 = 0.95;
    double eps = 1e-8;
    double weight_decay = 0.1;
    StoredType moment_dtype = StoredType::f32;
    double final_learning_rate() const;  // min_learning_rate with its rule applied
    bool operator==(const OptimizerConfig&) const = default;
};

enum class ScheduleType { cosine, linear, constant, wsd };

struct ScheduleConfig {
    ScheduleType type = ScheduleType::cosine;
    int64_t warmup_steps = 100;
    int64_t decay_steps = 0;  // wsd: length of the final decay; 0: a tenth of trainer.steps
    bool operator==(const ScheduleConfig&) const = default;
};

struct CheckpointConfig {
    int64_t every = 0;   // steps; 0: only at the end
    int64_t keep = 3;    // newest ones kept; 0: all
    std::string folder;  // empty: run.folder/checkpoints
    bool resume = true;  // `auto`: go on from the newest good checkpoint; `none`: start at step 0
    bool operator==(const CheckpointConfig&) const = default;
};

struct ParallelConfig {
    int64_t tp = 1, cp = 1, pp = 1;  // data parallelism takes the remaining ranks
    int64_t virtual_stages = 1;      // per pipeline rank
    int64_t zero = 1;
    bool reshard_after_forward = true;  // with zero 3
    int64_t bucket_mib = 256;           // gradients reduced together
    StoredType gradient_dtype = StoredType::f32;
    CopyEngineGroups copy_engines = CopyEngineGroups::pairs;
    bool sequence_scatter = false;  // tokens between blocks, over tp
    int64_t overlap_chunks = 0;     // of a tensor-parallel collective; 0: what pays
    Switch two_batch_overlap = Switch::automatic;
    bool hierarchical = true;
    bool operator==(const ParallelConfig&) const = default;
};

struct LogConfig {
    bool tensorboard = true;
    bool report = true;
    bool communication = true;  // comm_ms and its kin in metrics.jsonl
    bool operator==(const LogConfig&) const = default;
};

struct Config {
    RunConfig run;
    ModelConfig model;
    DataConfig data;
    TrainerConfig trainer;
    OptimizerConfig optimizer;
    ScheduleConfig schedule;
    CheckpointConfig checkpoint;
    ParallelConfig parallel;
    LogConfig log;
    bool operator==(const Config&) const = default;

    // checkpoint.folder, or its default under run.folder.
    std::string checkpoint_folder() const;
};

// Reads a YAML file, the files its `base:` key names (below it), then `key=value` overrides. Every mistake is
// an Error(input) with file:line:column (or the override) and what would work. Calls validate().
Config load_config(const std::string& path, const std::vector<std::string>& overrides = {});
// The same from YAML text; `name` stands for the file in messages, `base:` paths are relative to the working
// folder.
Config parse_config(const std::string& text, const std::string& name,
                    const std::vector<std::string>& overrides = {});

// Combinations that cannot work, checked before anything is allocated. Throws Error(input).
void validate(const Config& config);
// What `levin train` needs beyond that: run.folder and data.train.
void validate_for_training(const Config& config);
// What keeps the passes of a run on `ranks` ranks from being recorded as CUDA graphs (trainer.step_graph),
// and what to change; empty: nothing.
std::string step_graph_obstacle(const Config& config, DeviceType device, int64_t ranks);
// Whether a micro-batch can be taken as two halves in turn (parallel.two_batch_overlap), given tp above 1.
bool has_two_batches(const Config& config);
// The layout of a job of `ranks` ranks. Throws Error(input) with the nearest that works when ranks, model or
// sequences cannot be divided so.
Layout layout_of(const Config& config, int64_t ranks);
// global_batch must be a multiple of micro_batch * data-parallel ranks. Throws Error(input).
void validate_batch(const Config& config, int64_t data_parallel_ranks);

// Every key with its value, as YAML. Reading it back gives the same config, to the last bit of every number.
std::string to_yaml(const Config& config);
std::string to_yaml(const ModelConfig& config);  // only the section `model:`

// docs/config.md: every key with type, default, range and documentation.
std::string config_markdown();

template <>
std::span<const EnumName<Recompute>> enum_names();
template <>
std::span<const EnumName<Switch>> enum_names();
template <>
std::span<const EnumName<ScheduleType>> enum_names();
template <>
std::span<const EnumName<StoredType>> enum_names();
template <>
std::span<const EnumName<CopyEngineGroups>> enum_names();
template <>
std::span<const EnumName<DeviceType>> enum_names();
template <>
std::span<const EnumName<DType>> enum_names();

}  // namespace levin
