// levin generate: text from a model, printed as it comes.
#include <fmt/core.h>

#include <chrono>

#include "kernels/base/file.h"
#include "launch/commands/commands.h"
#include "launch/commands/model_source.h"
#include "launch/commands/values.h"
#include "trainer/generation.h"

namespace levin {

void add_generate_command(CLI::App& app) {
    struct Options {
        ModelOptions model;
        std::string prompt, prompt_file;
        SamplingOptions sampling;
        bool ignore_eos = false, statistics = false;
    };
    auto options = std::make_shared<Options>();
    SamplingOptions& sampling = options->sampling;
    CLI::App* command = app.add_subcommand("generate", "Continue a text");
    command->footer(
        "Example: levin generate runs/quickstart --prompt 'In the beginning ' --max-tokens 200 --temperature "
        "0.8");
    add_model_options(*command, options->model);
    auto* prompt =
        command->add_option("--prompt", options->prompt, "Text to continue (default: start of a document)");
    command->add_option("--prompt-file", options->prompt_file, "Read the text from this file")
        ->excludes(prompt);
    command->add_option("--max-tokens", sampling.max_tokens, "Tokens to generate at most")
        ->capture_default_str()
        ->check(positive());
    command->add_option("--temperature", sampling.temperature, "0: always the most likely token")
        ->capture_default_str()
        ->check(not_negative());
    command->add_option("--top-k", sampling.top_k, "Only the k most likely tokens; 0: all")
        ->capture_default_str()
        ->check(not_negative());
    command->add_option("--top-p", sampling.top_p, "Only the smallest set of tokens with this probability")
        ->capture_default_str()
        ->check(within(0, 1));
    command->add_option("--seed", sampling.seed, "The same seed gives the same text")
        ->capture_default_str()
        ->check(not_negative());
    command->add_flag("--ignore-eos", options->ignore_eos, "Go on after the end-of-text token");
    command->add_flag("--statistics", options->statistics, "Print time per token to standard error");
    command->callback([options] {
        const auto tokenizer = open_tokenizer(options->model);
        const auto model = open_model(options->model);
        std::string text = options->prompt;
        if (!options->prompt_file.empty()) text = read_text_file(options->prompt_file);
        std::vector<int32_t> prompt = tokenizer->encode(text);
        if (prompt.empty()) {
            const int32_t start = tokenizer->bos_id() >= 0 ? tokenizer->bos_id() : tokenizer->eos_id();
            LEVIN_REQUIRE(start >= 0, "generate",
                          "give a --prompt: this tokenizer has no token to start with");
            prompt.push_back(start);
        }
        check_tokens(*model, prompt);  // before anything is printed
        SamplingOptions sampling = options->sampling;
        if (!options->ignore_eos && tokenizer->eos_id() >= 0) sampling.stop.push_back(tokenizer->eos_id());

        StreamDecoder decoder(*tokenizer);
        fmt::print("{}", text);
        std::fflush(stdout);
        const auto start = std::chrono::steady_clock::now();
        const auto generated = generate(*model, prompt, sampling, [&](int32_t id) {
            // A model's vocabulary may be padded beyond the tokenizer's.
            fmt::print("{}", id < tokenizer->vocab_size() ? decoder.push(id) : std::string("\xEF\xBF\xBD"));
            std::fflush(stdout);
            return true;
        });
        fmt::print("{}\n", decoder.finish());
        const double seconds =
            std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        if (options->statistics)
            fmt::print(
                stderr, "{} prompt tokens, {} generated, {:.2f} s, {:.3f} ms a token\n", prompt.size(),
                generated.size(), seconds,
                seconds * 1000 / static_cast<double>(std::max<size_t>(1, prompt.size() + generated.size())));
    });
}

}  // namespace levin
