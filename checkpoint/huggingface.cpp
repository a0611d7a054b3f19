#include "checkpoint/huggingface.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "checkpoint/pickle.h"
#include "checkpoint/remote_code.h"
#include "kernels/base/error.h"
#include "model/parameters.h"

namespace levin {

namespace {

namespace fs = std::filesystem;

// Tensors some files hold besides the model's parameters, and that follow from the rest.
bool may_be_left_over(const std::string& name, const ModelConfig& config) {
    return (config.tie_embeddings && name == "lm_head.weight") || name.ends_with(".rotary_emb.inv_freq");
}

std::string first_few(const std::vector<std::string>& names) {
    std::string text;
    for (size_t i = 0; i < names.size() && i < 5; ++i) text += "\n  " + names[i];
    if (names.size() > 5) text += fmt::format("\n  and {} more", names.size() - 5);
    return text;
}

// The parameter table under which a model is stored: a Transformer that LLaMA cannot express is stored as the
// TransNormer model with the same layers, whose parameters are the same but for their Hugging Face names.
std::vector<ParameterSpec> stored_table(ModelConfig config) {
    if (config.family == Family::transformer && !llama_can_express(config)) config.family = Family::tnl;
    return parameter_table(config);
}

std::unique_ptr<TensorReader> open_tensors(const std::string& folder) {
    std::error_code ignored;
    const fs::path path(folder);
    const bool safetensors = fs::exists(path / "model.safetensors", ignored) ||
                             fs::exists(path / "model.safetensors.index.json", ignored);
    if (!safetensors && PickleReader::recognizes(folder)) return std::make_unique<PickleReader>(folder);
    return std::make_unique<SafetensorsReader>(folder);
}

}  // namespace

HuggingFaceParameters::HuggingFaceParameters(const std::string& folder, const ModelConfig& config)
    : tensors_(open_tensors(folder)) {
    std::vector<std::string> missing, misshapen, extra;
    std::set<std::string> known;
    for (const auto& spec : stored_table(config)) {
        shapes_[spec.name] = spec.shape;
        for (const auto& piece : spec.pieces) {
            pieces_[spec.name].push_back(piece.hf_name);
            known.insert(piece.hf_name);
            if (!tensors_->contains(piece.hf_name))
                missing.push_back(piece.hf_name + " " + to_string(piece.hf_shape));
            else if (tensors_->shape(piece.hf_name) != piece.hf_shape)
                misshapen.push_back(fmt::format("{}: {}, expected {}", piece.hf_name,
                                                to_string(tensors_->shape(piece.hf_name)),
                                                to_string(piece.hf_shape)));
            else
                LEVIN_REQUIRE(is_floating(tensors_->dtype(piece.hf_name)), folder,
                              "tensor '{}' holds {} numbers; a weight must be f32, bf16, f16 or f64",
                              piece.hf_name, to_string(tensors_->dtype(piece.hf_name)));
        }
    }
    for (const auto& name : tensors_->names())
        if (!known.count(name) && !may_be_left_over(name, config)) extra.push_back(name);
    std::string problems;
    if (!missing.empty())
        problems += fmt::format("\n{} tensors are missing:{}", missing.size(), first_few(missing));
    if (!misshapen.empty())
        problems += fmt::format("\n{} tensors have another shape than config.json says:{}", misshapen.size(),
                                first_few(misshapen));
    if (!extra.empty())
        problems += fmt::format("\n{} tensors belong to no parameter of this model:{}", extra.size(),
                                first_few(extra));
    LEVIN_REQUIRE(problems.empty(), folder,
                  "its tensors are not those of the model its config.json describes{}", problems);
}

DType HuggingFaceParameters::dtype(const std::string& name) const {
    const auto& pieces = pieces_.at(name);
    const DType first = tensors_->dtype(pieces[0]);
    for (const auto& piece : pieces)  // mixed: the type that holds both
        if (tensors_->dtype(piece) != first)
            return first == DType::f64 || tensors_->dtype(piece) == DType::f64 ? DType::f64 : DType::f32;
    return first;
}

Tensor HuggingFaceParameters::read(const std::string& name) const {
    const auto& pieces = pieces_.at(name);
    if (pieces.size() == 1) return tensors_->read(pieces[0]).view(shapes_.at(name));
    const DType type = dtype(name);
    Tensor stacked = Tensor::empty(shapes_.at(name), type);
    char* to = static_cast<char*>(stacked.data());
    for (const auto& piece : pieces) {
        const Tensor part = tensors_->read(piece).to(type);
        std::memcpy(to, part.data(), part.bytes());
        to += part.bytes();
    }
    return stacked;
}

namespace {

bool exact_in_bf16(const Tensor& value) {
    if (value.dtype() == DType::bf16) return true;
    for (const double number : value.to_vector()) {
        const double rounded = static_cast<float>(bf16(static_cast<float>(number)));
        if (rounded != number && number == number) return false;
    }
    return true;
}

std::string generation_config(const ModelConfig& config) {
    nlohmann::ordered_json json = {{"_from_model_config", true}};
    if (config.bos_token_id >= 0) json["bos_token_id"] = config.bos_token_id;
    if (config.eos_token_id >= 0) json["eos_token_id"] = config.eos_token_id;
    if (config.pad_token_id >= 0) json["pad_token_id"] = config.pad_token_id;
    return json.dump(2) + "\n";
}

}  // namespace

void export_hugging_face(const ModelConfig& config, const ParameterReader& parameters,
                         const std::string& destination, const ExportOptions& options) {
    LEVIN_REQUIRE(options.dtype == DType::f32 || options.dtype == DType::bf16, "convert",
                  "cannot export {} numbers; expected f32 or bf16", to_string(options.dtype));
    struct Source {
        std::string parameter;
        int64_t first_row, rows;
    };
    std::vector<Source> sources;
    std::vector<TensorInfo> layout;
    for (const auto& spec : stored_table(config)) {
        DType dtype = options.dtype;
        if (spec.keep_accumulator && dtype == DType::bf16 && !exact_in_bf16(parameters.read(spec.name)))
            dtype = DType::f32;
        int64_t row = 0;
        for (const auto& piece : spec.pieces) {
            sources.push_back({spec.name, row, piece.rows});
            layout.push_back({piece.hf_name, dtype, piece.hf_shape});
            row += piece.rows;
        }
    }
    fs::create_directories(destination);
    const fs::path folder(destination);
    std::string held;  // the parameter read last: its pieces follow each other
    Tensor value;
    write_safetensors_folder(destination, layout, options.shard_bytes, [&](size_t i) {
        const Source& source = sources[i];
        if (held != source.parameter) value = parameters.read(source.parameter);
        held = source.parameter;
        return value.narrow(0, source.first_row, source.rows)
            .contiguous()
            .to(layout[i].dtype)
            .view(layout[i].shape);
    });
    const std::string json = model_config_to_json(config, options.dtype);
    write_text_file((folder / "config.json").string(), json);
    write_text_file((folder / "generation_config.json").string(), generation_config(config));
    if (json.find("\"auto_map\"") != std::string::npos)
        for (const auto& [name, text] : remote_code()) write_text_file((folder / name).string(), text);
    for (const auto& file : options.tokenizer_files)
        copy_file_durably(file, (folder / fs::path(file).filename()).string());
}

std::string find_file(const std::vector<std::string>& paths, std::string_view name) {
    for (const auto& path : paths)
        if (fs::path(path).filename() == name) return path;
    return {};
}

}  // namespace levin
