#include "trainer/run_folder.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "checkpoint/huggingface.h"
#include "checkpoint/native.h"
#include "data/tokenizer.h"
#include "kernels/base/file.h"

namespace levin {

namespace fs = std::filesystem;

std::vector<std::string> dataset_specs(const std::vector<DataSource>& sources) {
    const bool weighted =
        std::any_of(sources.begin(), sources.end(), [](const DataSource& s) { return s.weight > 0; });
    std::vector<std::string> specs;
    for (const DataSource& source : sources) {
        const double weight = source.weight > 0 ? source.weight : 1;
        specs.push_back(weighted ? fmt::format("{} {}", weight, source.prefix) : source.prefix);
    }
    return specs;
}

namespace {

nlohmann::json identity_of(const Config& config, const Dataset& data) {
    return {{"model", nlohmann::json::parse(model_config_to_json(config.model))},
            {"data", fmt::format("{:016x}", data.fingerprint())},
            {"trainer.seed", config.trainer.seed},
            {"trainer.sequence_length", config.trainer.sequence_length},
            {"trainer.global_batch", config.trainer.global_batch},
            {"data.packed_documents", config.data.packed_documents}};
}

void check_identity(const fs::path& file, const nlohmann::json& mine, const std::string& folder) {
    const nlohmann::json theirs = nlohmann::json::parse(read_text_file(file.string()), nullptr, false);
    LEVIN_REQUIRE(theirs.is_object(), "run", "{} is damaged; choose another run.folder", file.string());
    for (const auto& [key, value] : mine.items()) {
        if (theirs.contains(key) && theirs[key] == value) continue;
        std::string detail = key == "model" || key == "data"
                                 ? std::string("another ") + key
                                 : fmt::format("{} {}", key, theirs.value(key, nlohmann::json()).dump());
        if (key == "model" && theirs.contains(key))
            for (const auto& [name, setting] : value.items())
                if (theirs[key].value(name, nlohmann::json()) != setting) {
                    detail += fmt::format(" ({} {}, not {})", name,
                                          theirs[key].value(name, nlohmann::json()).dump(), setting.dump());
                    break;
                }
        fail(Fault::input, "run",
             "{} holds another run: it was started with {}. Choose another run.folder, or start with the old "
             "settings to "
             "go on with that run",
             folder, detail);
    }
}

// Makes sure of a folder that can be written; days of work may end in a save there.
void make_folder(const fs::path& folder) {
    std::error_code error, ignored;
    fs::create_directories(folder, error);
    LEVIN_REQUIRE(fs::is_directory(folder, ignored), "run", "cannot make the folder {}: {}", folder.string(),
                  error ? error.message() : "it is no folder");
    LEVIN_REQUIRE(::access(folder.c_str(), R_OK | W_OK | X_OK) == 0, "run",
                  "the folder {} cannot be written: {}; check its permissions", folder.string(),
                  std::strerror(errno));
}

// A run that went on from a lost one with --restarts, or was requeued, may find the old process not quite
// gone.
constexpr double kSecondsToEnd = 5;

}  // namespace

std::unique_ptr<FolderLock> claim_run_folder(const Config& config, const Dataset& data) {
    const fs::path folder = config.run.folder;
    make_folder(folder);
    auto lock = std::make_unique<FolderLock>(folder.string(), kSecondsToEnd);
    LEVIN_REQUIRE(lock->held(), "run",
                  "another process trains in {}: wait for it, stop it, or choose another run.folder",
                  folder.string());
    const nlohmann::json identity = identity_of(config, data);
    const fs::path file = folder / "run.json";
    if (fs::exists(file)) {
        check_identity(file, identity, folder.string());
    } else {
        LEVIN_REQUIRE(
            !fs::exists(folder / "metrics.jsonl"), "run",
            "{} holds metrics.jsonl but no run.json: it is no run of this levin; choose another run.folder",
            folder.string());
        write_text_file(file.string(), identity.dump(1) + "\n");
    }
    const std::string checkpoints = config.checkpoint_folder();
    make_folder(checkpoints);
    LEVIN_REQUIRE(
        config.checkpoint.resume || list_checkpoints(checkpoints, false).empty(), "run",
        "{} holds checkpoints, and checkpoint.resume=none starts at step 0: choose another run.folder, "
        "move them away, or go on from them with checkpoint.resume=auto",
        checkpoints);
    write_text_file((folder / "config.yaml").string(), to_yaml(config));

    // The tokenizer travels with the run, for generation and export. Shards of other makers do not tell
    // theirs.
    const std::string& prefix = config.data.train.front().prefix;
    if (read_shard_info(prefix)) {
        make_folder(folder / "tokenizer");
        load_tokenizer_of_shard(prefix)->save_to((folder / "tokenizer").string());
    }
    return lock;
}

}  // namespace levin
