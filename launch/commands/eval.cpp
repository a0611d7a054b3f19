// levin eval: loss and perplexity of a model on token shards.
#include <fmt/core.h>

#include <chrono>
#include <cmath>

#include "launch/commands/commands.h"
#include "launch/commands/model_source.h"
#include "launch/commands/values.h"
#include "parallel/world.h"
#include "trainer/evaluation.h"

namespace levin {

void add_eval_command(CLI::App& app) {
    struct Options {
        ModelOptions model;
        std::vector<std::string> data;
        int64_t length = 1024, micro_batch = 4, batches = 0;
        bool json = false;
    };
    auto options = std::make_shared<Options>();
    CLI::App* command = app.add_subcommand("eval", "Loss and perplexity on token shards");
    command->footer("Example: levin eval runs/quickstart --data runs/quickstart/data/train-validation");
    add_model_options(*command, options->model);
    command->add_option("--data", options->data, "Shards (PREFIX) made with the model's tokenizer")
        ->required();
    command->add_option("--sequence-length", options->length, "Tokens of context")
        ->capture_default_str()
        ->check(positive());
    command->add_option("--micro-batch", options->micro_batch, "Sequences at a time")
        ->capture_default_str()
        ->check(positive());
    command->add_option("--batches", options->batches, "Micro-batches; 0: all the data")
        ->capture_default_str()
        ->check(not_negative());
    command->add_flag("--json", options->json, "Print one JSON object");
    command->callback([options] {
        const auto model = open_model(options->model);
        const Loader loader(
            std::make_shared<Dataset>(options->data),
            {.length = options->length, .vocab_size = model->config().vocab_size, .shuffle = false});
        const auto start = std::chrono::steady_clock::now();
        World& world = World::current();
        const EvaluationResult result =
            evaluate(*model, loader, options->micro_batch, options->batches, world.all());
        const double seconds =
            std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        if (!world.is_root()) return;
        if (options->json)
            fmt::print("{{\"loss\": {}, \"perplexity\": {}, \"tokens\": {}}}\n", result.loss,
                       std::exp(result.loss), result.tokens);
        else
            fmt::print("loss {:.5f} nats a token, perplexity {:.4f}, over {} tokens ({:.0f} tokens/s)\n",
                       result.loss, std::exp(result.loss), result.tokens,
                       static_cast<double>(result.tokens) / seconds);
    });
}

}  // namespace levin
