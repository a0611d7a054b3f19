#include "launch/commands/model_source.h"

#include <fmt/core.h>

#include <filesystem>

#include "checkpoint/huggingface.h"
#include "launch/commands/options.h"

namespace levin {

namespace {
void warn(const std::string& line) { fmt::print(stderr, "{}\n", line); }
}  // namespace

void add_model_options(CLI::App& command, ModelOptions& options) {
    command.add_option("MODEL", options.path, "Run folder, checkpoint or Hugging Face folder")->required();
    command.add_option("--device", options.device, "cpu or cuda")->capture_default_str();
    command.add_option("--dtype", options.dtype, "f64, f32 or bf16 (default: f32 on the CPU, bf16 on a GPU)");
    command.add_option(
        "--tokenizer", options.tokenizer,
        "byte, a .model, a tokenizer.json or a folder (default: the one that lies with the model)");
}

std::unique_ptr<LanguageModel> open_model(const ModelOptions& options) {
    const Device device = parse_device(options.device);
    const LoadedModel loaded = load_model(options.path, warn);
    DType dtype = loaded.dtype == DType::f64 ? DType::f64 : device.is_cuda() ? DType::bf16 : DType::f32;
    if (!options.dtype.empty()) dtype = parse_float_type(options.dtype);
    auto model = std::make_unique<LanguageModel>(loaded.config, dtype, device);
    // One parameter at a time: a large model need not be in memory twice.
    for (Parameter& parameter : model->parameters()) {
        Tensor value = parameter.variable.value();
        value.copy_from(loaded.parameters->read(parameter.spec.name));
    }
    return model;
}

std::unique_ptr<Tokenizer> open_tokenizer(const ModelOptions& options) {
    if (!options.tokenizer.empty()) return load_tokenizer(options.tokenizer);
    const LoadedModel loaded = load_model(options.path);
    LEVIN_REQUIRE(!loaded.tokenizer_files.empty(), "tokenizer",
                  "no tokenizer lies with {}; name one with --tokenizer byte|PATH", options.path);
    return load_tokenizer(std::filesystem::path(loaded.tokenizer_files.front()).parent_path().string());
}

}  // namespace levin
