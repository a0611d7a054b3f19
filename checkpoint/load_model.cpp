#include <algorithm>
#include <filesystem>

#include "checkpoint/huggingface.h"
#include "checkpoint/manifest.h"
#include "checkpoint/native.h"
#include "kernels/base/error.h"
#include "model/parameters.h"

namespace levin {

namespace {

namespace fs = std::filesystem;

class NativeParameters : public ParameterReader {
public:
    explicit NativeParameters(Checkpoint checkpoint) : checkpoint_(std::move(checkpoint)) {}
    DType dtype(const std::string& name) const override { return checkpoint_.dtype(kModelGroup, name); }
    Tensor read(const std::string& name) const override { return checkpoint_.read(kModelGroup, name); }

private:
    Checkpoint checkpoint_;
};

bool is_tokenizer_file(const std::string& name) {
    static const std::vector<std::string> names{"tokenizer.model",
                                                "tokenizer.json",
                                                "tokenizer_config.json",
                                                "special_tokens_map.json",
                                                "added_tokens.json",
                                                "vocab.json",
                                                "merges.txt",
                                                "chat_template.jinja"};
    return std::find(names.begin(), names.end(), name) != names.end() || name.ends_with(".tiktoken") ||
           (name.starts_with("tokenization_") && name.ends_with(".py"));
}

std::vector<std::string> files_in(const fs::path& folder, bool only_tokenizers) {
    std::vector<std::string> files;
    std::error_code error;
    for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
        std::error_code ignored;
        const std::string name = entry->path().filename().string();
        if (entry->is_regular_file(ignored) && !name.starts_with('.') &&
            (!only_tokenizers || is_tokenizer_file(name)))
            files.push_back(entry->path().string());
    }
    std::sort(files.begin(), files.end());
    return files;
}

// The type of most numbers.
DType prevailing_dtype(const ParameterReader& parameters, const std::vector<ParameterSpec>& table) {
    std::map<DType, int64_t> numbers;
    for (const auto& spec : table) numbers[parameters.dtype(spec.name)] += element_count(spec.shape);
    return std::max_element(numbers.begin(), numbers.end(),
                            [](const auto& a, const auto& b) { return a.second < b.second; })
        ->first;
}

LoadedModel from_checkpoint(Checkpoint checkpoint) {
    const std::string path = checkpoint.path(), where = "checkpoint " + path;
    LoadedModel model;
    model.path = path;
    model.format = "levin";
    model.config = model_config_from_json(checkpoint.state().model_json, where + " model");
    model.step = checkpoint.state().step;
    model.tokens = checkpoint.state().tokens;
    model.fields = checkpoint.state().fields;
    const auto table = parameter_table(model.config);
    for (const auto& spec : table) {
        LEVIN_REQUIRE(checkpoint.contains(kModelGroup, spec.name), where,
                      "lacks the parameter '{}' of its model", spec.name);
        LEVIN_REQUIRE(checkpoint.shape(kModelGroup, spec.name) == spec.shape, where,
                      "parameter '{}' has shape {}, its model needs {}", spec.name,
                      to_string(checkpoint.shape(kModelGroup, spec.name)), to_string(spec.shape));
    }
    model.parameters = std::make_shared<NativeParameters>(std::move(checkpoint));
    model.dtype = prevailing_dtype(*model.parameters, table);
    const auto source = model.fields.find(kSourceDtypeField);
    if (source != model.fields.end()) model.dtype = dtype_from_string(source->second);
    const fs::path folder = fs::absolute(path).lexically_normal();
    for (const fs::path& run : {folder.parent_path().parent_path(), folder.parent_path(), folder})
        if (model.tokenizer_files.empty()) model.tokenizer_files = files_in(run / "tokenizer", false);
    return model;
}

LoadedModel from_hugging_face(const std::string& path) {
    LoadedModel model;
    model.path = path;
    model.format = "huggingface";
    const std::string config = (fs::path(path) / "config.json").string();
    model.config = model_config_from_json(read_text_file(config, 16u << 20), config);
    model.parameters = std::make_shared<HuggingFaceParameters>(path, model.config);
    model.dtype = prevailing_dtype(*model.parameters, parameter_table(model.config));
    model.tokenizer_files = files_in(path, true);
    return model;
}

}  // namespace

LoadedModel load_model(const std::string& path, const std::function<void(const std::string&)>& log) {
    std::error_code ignored;
    LEVIN_REQUIRE(fs::is_directory(path, ignored), "model " + path,
                  "is no folder; expected a run folder, a checkpoint or a Hugging Face folder");
    std::string given = path;
    while (given.size() > 1 && given.back() == '/') given.pop_back();
    if (fs::exists(fs::path(given) / kManifestFile, ignored)) return from_checkpoint(Checkpoint::open(given));
    for (const fs::path& folder : {fs::path(given) / "checkpoints", fs::path(given)})
        if (auto checkpoint = open_newest_checkpoint(folder.string(), log))
            return from_checkpoint(*std::move(checkpoint));
    LEVIN_REQUIRE(fs::exists(fs::path(given) / "config.json", ignored), "model " + path,
                  "holds no model: looked for checkpoints/step_*, step_*, a manifest and config.json");
    return from_hugging_face(given);
}

std::string import_model(const LoadedModel& model, const std::string& destination) {
    const fs::path folder(destination);
    const std::string checkpoints = (folder / "checkpoints").string();
    for (const auto& [step, path] : checkpoint_folders(checkpoints))
        LEVIN_REQUIRE(step == 0, destination,
                      "already holds {}, which would be taken before the converted weights", path);
    CheckpointState state;
    state.step = 0;
    state.model_json = model_config_to_json(model.config, model.dtype);
    state.fields[kSourceDtypeField] = to_string(model.dtype);
    std::vector<CheckpointTensor> tensors;
    for (const auto& spec : parameter_table(model.config)) {
        const auto parameters = model.parameters;
        CheckpointTensor tensor{kModelGroup, spec.name, {}};
        tensor.dtype = accumulator_of(parameters->dtype(spec.name));
        tensor.shape = spec.shape;
        tensor.produce = [parameters, name = spec.name, type = tensor.dtype] {
            return parameters->read(name).to(type);
        };
        tensors.push_back(std::move(tensor));
    }
    if (!model.tokenizer_files.empty()) fs::create_directories(folder / "tokenizer");
    for (const auto& file : model.tokenizer_files)
        copy_file_durably(file, (folder / "tokenizer" / fs::path(file).filename()).string());
    return save_checkpoint(checkpoints, state, tensors);
}

}  // namespace levin
