// levin convert: between levin's own models and Hugging Face folders.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/huggingface.h"
#include "launch/commands/commands.h"
#include "launch/commands/model_source.h"
#include "launch/commands/options.h"

namespace levin {

namespace {

namespace fs = std::filesystem;

constexpr const char* kLogitsFile = "levin_logits.safetensors";

struct Options {
    std::string source, destination, dtype, shard_size = "5GB";
    bool overwrite = false, with_logits = false;
};

void note(const std::string& line) { fmt::print(stderr, "{}\n", line); }

void require_room(const Options& options) {
    std::error_code ignored;
    LEVIN_REQUIRE(!fs::exists(options.destination, ignored) || fs::is_directory(options.destination, ignored),
                  "convert", "{} exists and is no folder", options.destination);
    LEVIN_REQUIRE(options.overwrite || !fs::exists(options.destination, ignored) ||
                      fs::is_empty(options.destination, ignored),
                  "convert", "{} is not empty; name another folder, or add --overwrite", options.destination);
    LEVIN_REQUIRE(!fs::exists(options.destination, ignored) ||
                      !fs::equivalent(options.source, options.destination, ignored),
                  "convert", "source and destination are the same folder");
}

uint64_t parse_size(const std::string& text) {
    size_t used = 0;
    double number = 0;
    try {
        number = std::stod(text, &used);
    } catch (const std::exception&) {
        used = 0;
    }
    const std::string unit = text.substr(used);
    const double factor = unit == "GB"                  ? 1e9
                          : unit == "MB"                ? 1e6
                          : unit == "KB"                ? 1e3
                          : unit.empty() || unit == "B" ? 1
                                                        : 0;
    LEVIN_REQUIRE(used > 0 && factor > 0 && number > 0 && number * factor < 1e18, "convert",
                  "--shard-size is '{}'; expected a size such as 5GB, 500MB or 2000000", text);
    return static_cast<uint64_t>(number * factor);
}

// Token ids and levin's own logits for them, for tests/checkpoint/check_transformers.py.
void write_logits(const Options& options, const ModelConfig& config) {
    ModelOptions source;
    source.path = options.destination;  // what was written, rounded as it is
    source.dtype = "f32";
    const auto model = open_model(source);
    const int64_t batch = 2, length = std::min<int64_t>(200, config.max_position);
    std::vector<int32_t> ids;
    for (uint64_t i = 0, x = 12345; i < static_cast<uint64_t>(batch * length); ++i) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        ids.push_back(static_cast<int32_t>((x >> 33) % static_cast<uint64_t>(config.vocab_size)));
    }
    const Tensor tokens = Tensor::from<int32_t>({batch * length}, ids);
    NoGradient off;
    const Tensor logits = model->logits(model->hidden(tokens, {.batch = batch, .length = length}));
    const std::string path = (fs::path(options.destination) / kLogitsFile).string();
    SafetensorsWriter writer(path, {{"input_ids", DType::i32, {batch, length}},
                                    {"logits", DType::f32, {batch, length, config.vocab_size}}});
    writer.write("input_ids", tokens.view({batch, length}));
    writer.write("logits", logits.view({batch, length, config.vocab_size}));
    writer.finish();
    fmt::print("wrote {}\n", path);
}

void from_hf(const Options& options) {
    require_room(options);
    const LoadedModel model = load_model(options.source, note);
    LEVIN_REQUIRE(model.format == "huggingface", "convert", "{} is a levin model already", options.source);
    const std::string path = import_model(model, options.destination);
    fmt::print("{}: {} parameters, {} -> {}\n", options.source, model.config.parameter_count(),
               to_string(model.dtype), path);
}

void to_hf(const Options& options) {
    require_room(options);
    const LoadedModel model = load_model(options.source, note);
    ExportOptions how;
    how.dtype = model.dtype == DType::bf16 ? DType::bf16 : DType::f32;
    if (!options.dtype.empty()) how.dtype = parse_float_type(options.dtype);
    how.shard_bytes = parse_size(options.shard_size);
    how.tokenizer_files = model.tokenizer_files;
    std::string reason;
    if (model.config.family == Family::transformer && !llama_can_express(model.config, &reason))
        fmt::print("LLaMA knows no {}; the model is exported with levin's own modelling file\n", reason);
    export_hugging_face(model.config, *model.parameters, options.destination, how);
    fmt::print("{}: {} parameters as {} -> {}\n", model.path, model.config.parameter_count(),
               to_string(how.dtype), options.destination);
    if (model.tokenizer_files.empty())
        fmt::print("no tokenizer lies with {}: none was copied\n", options.source);
    if (options.with_logits)
        write_logits(options, model.config);
    else  // those of an earlier model would be compared with this one
        fs::remove(fs::path(options.destination) / kLogitsFile);
}

}  // namespace

void add_convert_command(CLI::App& app) {
    CLI::App* convert = app.add_subcommand("convert", "From and to Hugging Face folders");
    convert->require_subcommand(1);
    auto options = std::make_shared<Options>();
    const auto common = [&](CLI::App* command, const char* source, const char* destination) {
        command->add_option("SRC", options->source, source)->required();
        command->add_option("DST", options->destination, destination)->required();
        command->add_flag("--overwrite", options->overwrite, "Write into a folder that is not empty");
    };

    CLI::App* from = convert->add_subcommand("from-hf", "Make a levin model of a Hugging Face folder");
    common(from, "Folder with config.json and the weights (safetensors, or pytorch_model.bin)",
           "Folder to make; a run with this run.folder starts from it");
    from->footer("Example: levin convert from-hf downloads/TransNormerLLM-385M models/tnl-385m");
    from->callback([options] { from_hf(*options); });

    CLI::App* to = convert->add_subcommand("to-hf", "Make a Hugging Face folder of a levin model");
    common(to, "Run folder (its newest good checkpoint), a checkpoint, or a Hugging Face folder",
           "Folder to make");
    to->add_option("--dtype", options->dtype, "f32 or bf16 (default: the source's)");
    to->add_option("--shard-size", options->shard_size, "Largest size of one weight file")
        ->capture_default_str();
    to->add_flag(
        "--with-logits", options->with_logits,
        "Also write levin_logits.safetensors: token ids and levin's logits for them, to compare with");
    to->footer("Example: levin convert to-hf runs/quickstart runs/quickstart/hf --dtype bf16");
    to->callback([options] { to_hf(*options); });
}

}  // namespace levin
