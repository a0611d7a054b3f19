// A model and its tokenizer from a run folder, a checkpoint or a Hugging Face folder, for the commands that
// run one.
#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <string>

#include "data/tokenizer.h"
#include "model/language_model.h"

namespace levin {

struct ModelOptions {
    std::string path, device = "cpu", dtype, tokenizer;
};
// MODEL, --device, --dtype, --tokenizer.
void add_model_options(CLI::App& command, ModelOptions& options);

// dtype "": f64 for a model kept in f64, else f32 on the CPU and bf16 on a GPU.
std::unique_ptr<LanguageModel> open_model(const ModelOptions& options);
// --tokenizer, or the one that lies with the model. Throws Error(input) when there is none.
std::unique_ptr<Tokenizer> open_tokenizer(const ModelOptions& options);

}  // namespace levin
