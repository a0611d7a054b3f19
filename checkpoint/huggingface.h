// Hugging Face folders: config.json <-> ModelConfig, and the tensors by parameter name.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/safetensors.h"
#include "model/config.h"

namespace levin {

// config.json as the published checkpoints have it (keys of TransnormerConfig; gate_dim tells TNL3), or of
// LlamaForCausalLM for a Transformer that LLaMA can express. What the published keys cannot say (hybrids,
// decay, position, gate, GLU activation, ..) is written as further keys, only where it differs from their
// meaning; our modelling file and model_config_from_json() read them. `dtype` is the value of torch_dtype.
std::string model_config_to_json(const ModelConfig& config, DType dtype = DType::f32);

// The inverse. Throws Error(input) naming `where`, the key and its value for what is missing, of the wrong
// type, or not known to levin (activation, rope scaling, model_type, ..).
ModelConfig model_config_from_json(std::string_view text, const std::string& where);

// Do both describe the same function and the same parameters, however they are spelt (glu_dim 0 or its value,
// ..)?
bool same_model(const ModelConfig& a, const ModelConfig& b);

// Can a plain LlamaForCausalLM compute this model? If not, `reason` says what it cannot express; such a
// Transformer is exported with our modelling file.
bool llama_can_express(const ModelConfig& config, std::string* reason = nullptr);

// A model in memory or on disk, by parameter name (parameter_table).
class ParameterReader {
public:
    virtual ~ParameterReader() = default;
    // As stored: f32, bf16 or f64.
    virtual DType dtype(const std::string& name) const = 0;
    virtual Tensor read(const std::string& name) const = 0;
};

// Parameters of a Hugging Face folder; pieces (q, k, v of LLaMA; l1, l2) are stacked as parameter_table says.
// The constructor checks that every tensor is there with its shape and none is left over, and names all that
// are not.
class HuggingFaceParameters : public ParameterReader {
public:
    HuggingFaceParameters(const std::string& folder, const ModelConfig& config);
    DType dtype(const std::string& name) const override;
    Tensor read(const std::string& name) const override;

private:
    std::unique_ptr<TensorReader> tensors_;
    std::map<std::string, std::vector<std::string>> pieces_;
    std::map<std::string, Shape> shapes_;
};

// Parameters already in memory.
class MemoryParameters : public ParameterReader {
public:
    explicit MemoryParameters(std::map<std::string, Tensor> values) : values_(std::move(values)) {}
    DType dtype(const std::string& name) const override { return values_.at(name).dtype(); }
    Tensor read(const std::string& name) const override { return values_.at(name); }

private:
    std::map<std::string, Tensor> values_;
};

struct ExportOptions {
    DType dtype = DType::f32;  // f32 or bf16. LRPE angles stay f32 where bf16 would round them
    uint64_t shard_bytes = kDefaultShardBytes;
    std::vector<std::string> tokenizer_files;  // copied along
};

// Writes a Hugging Face folder that loads in `transformers` with trust_remote_code (a LLaMA without it):
// config.json, generation_config.json, model.safetensors or its shards, the modelling files, the tokenizer's
// files. `destination` is made when missing; files of the same names are replaced.
void export_hugging_face(const ModelConfig& config, const ParameterReader& parameters,
                         const std::string& destination, const ExportOptions& options);

// A model to run or convert: from a run folder or a folder of checkpoints (the newest good one), one
// checkpoint, or a Hugging Face folder.
struct LoadedModel {
    ModelConfig config;
    std::string path;    // what was opened: the checkpoint or the Hugging Face folder
    std::string format;  // "levin" or "huggingface"
    int64_t step = 0, tokens = 0;
    DType dtype = DType::f32;  // of the source: that of most numbers; of the original if converted
    std::vector<std::string>
        tokenizer_files;  // of the run folder's tokenizer/, or of the Hugging Face folder
    std::map<std::string, std::string> fields;  // a native checkpoint's CheckpointState::fields
    std::shared_ptr<const ParameterReader> parameters;
};
// `log` hears of skipped checkpoints. Throws Error(input) saying what was looked for.
LoadedModel load_model(const std::string& path, const std::function<void(const std::string&)>& log = {});

// Makes a levin model of it: destination/checkpoints/step_00000000 with the weights (f32; f64 stays) and no
// optimizer moments, and destination/tokenizer/ with the tokenizer's files, so that a run whose folder is
// `destination` starts from there. Returns the checkpoint's path.
std::string import_model(const LoadedModel& model, const std::string& destination);

// The file of a list (a path's last part) or an empty string: find_file(model.tokenizer_files,
// "tokenizer.json").
std::string find_file(const std::vector<std::string>& paths, std::string_view name);

}  // namespace levin
