// levin checkpoint: what a run's checkpoints are, and whether they are sound.
#include <fmt/chrono.h>
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <memory>
#include <string>

#include "checkpoint/huggingface.h"
#include "checkpoint/native.h"
#include "launch/commands/commands.h"

namespace levin {

namespace {

namespace fs = std::filesystem;

// A run folder's checkpoints/, or the folder itself when that is where they lie.
std::string checkpoints_of(const std::string& path) {
    const fs::path inside = fs::path(path) / "checkpoints";
    return fs::is_directory(inside) ? inside.string() : path;
}

// One line each; false when one is bad.
bool print_list(const std::vector<CheckpointSummary>& list) {
    bool good = true;
    for (const auto& entry : list) {
        if (entry.problem.empty()) {
            const auto date = static_cast<std::time_t>(entry.created_unix_seconds);
            fmt::print("{:>10}  {:>10.1f} MB  {:%Y-%m-%d %H:%M:%S}  good  {}\n", entry.step,
                       static_cast<double>(entry.bytes) / 1e6, fmt::localtime(date), entry.path);
        } else {
            fmt::print("{:>10}  {:>13}  {:>19}  BAD   {}\n", entry.step, "-", "-", entry.problem);
            good = false;
        }
    }
    return good;
}

std::vector<CheckpointSummary> summaries(const std::string& path, bool hashes) {
    LEVIN_REQUIRE(fs::is_directory(path), "checkpoint", "{} is no folder", path);
    const std::string folder = checkpoints_of(path);
    auto list = list_checkpoints(folder, hashes);
    LEVIN_REQUIRE(!list.empty(), "checkpoint", "{} holds no checkpoint (no folder step_*)", folder);
    return list;
}

void verify(const std::string& path) {
    if (fs::exists(fs::path(path) / "manifest") ||
        fs::path(path).lexically_normal().filename().string().starts_with("step_")) {
        const LoadedModel model = load_model(path);  // the hashes, and that it is a whole model
        fmt::print("{}: good, step {}, {} tokens\n", path, model.step, model.tokens);
    } else if (fs::exists(fs::path(path) / "config.json")) {
        const LoadedModel model = load_model(path);
        fmt::print("{}: a Hugging Face folder whose {} parameters are all there (no hashes to compare)\n",
                   path, model.config.parameter_count());
    } else if (!print_list(summaries(path, true))) {
        throw CLI::RuntimeError(static_cast<int>(Fault::input));
    }
}

}  // namespace

void add_checkpoint_command(CLI::App& app) {
    CLI::App* checkpoint = app.add_subcommand("checkpoint", "List and verify checkpoints");
    checkpoint->require_subcommand(1);
    auto path = std::make_shared<std::string>();
    auto quick = std::make_shared<bool>(false);

    CLI::App* list = checkpoint->add_subcommand("list", "Step, size, date and soundness of each checkpoint");
    list->add_option("RUN", *path, "Run folder, or a folder of checkpoints")->required();
    list->add_flag("--quick", *quick, "Check names and sizes only, not every byte");
    list->footer("Example: levin checkpoint list runs/quickstart");
    list->callback([path, quick] { print_list(summaries(*path, !*quick)); });

    CLI::App* verification =
        checkpoint->add_subcommand("verify", "Check every byte; exit status 2 when something is wrong");
    verification->add_option("PATH", *path, "A run folder, one checkpoint, or a Hugging Face folder")
        ->required();
    verification->footer("Example: levin checkpoint verify runs/quickstart/checkpoints/step_00000100");
    verification->callback([path] { verify(*path); });
}

}  // namespace levin
