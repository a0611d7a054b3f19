#include <fcntl.h>
#include <stdio.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <filesystem>

#include "checkpoint/manifest.h"
#include "checkpoint/native.h"
#include "checkpoint/safetensors.h"
#include "kernels/base/error.h"

namespace levin {

namespace {

namespace fs = std::filesystem;

constexpr const char* kTemporary = ".tmp-";

std::string report_name(int rank) { return fmt::format("rank_{:05}.report", rank); }

DType dtype_of(const CheckpointTensor& tensor) {
    return tensor.produce ? tensor.dtype : tensor.value.dtype();
}
const Shape& shape_of(const CheckpointTensor& tensor) {
    return tensor.produce ? tensor.shape : tensor.value.shape();
}

// This rank's files, one per group.
proto::RankReport write_parts(const fs::path& folder, const std::vector<CheckpointTensor>& tensors, int rank,
                              int ranks) {
    proto::RankReport report;
    std::vector<std::string> groups;
    for (const auto& tensor : tensors)
        if (std::find(groups.begin(), groups.end(), tensor.group) == groups.end())
            groups.push_back(tensor.group);
    for (const auto& group : groups) {
        std::vector<const CheckpointTensor*> members;
        for (const auto& tensor : tensors)
            if (tensor.group == group) members.push_back(&tensor);
        std::stable_sort(members.begin(), members.end(), [](const auto* a, const auto* b) {
            return size_of(dtype_of(*a)) > size_of(dtype_of(*b));
        });
        const auto file_number = static_cast<uint32_t>(report.files_size());
        std::vector<TensorInfo> layout;
        std::map<std::string, int> parts_of;
        for (const auto* tensor : members) {
            const Shape& shape = shape_of(*tensor);
            const Shape global = tensor->global_shape.empty() ? shape : tensor->global_shape;
            const Shape offset = tensor->offset.empty() ? Shape(shape.size(), 0) : tensor->offset;
            const int number = parts_of[tensor->name]++;
            const std::string key = number == 0 ? tensor->name : fmt::format("{}#{}", tensor->name, number);
            layout.push_back({key, dtype_of(*tensor), shape});
            proto::TensorPart& part = *report.add_parts();
            part.set_group(group);
            part.set_name(tensor->name);
            part.set_dtype(to_string(dtype_of(*tensor)));
            part.mutable_global_shape()->Add(global.begin(), global.end());
            part.mutable_offset()->Add(offset.begin(), offset.end());
            part.mutable_shape()->Add(shape.begin(), shape.end());
            part.set_file(file_number);
            part.set_key(key);
        }
        const std::string name =
            ranks == 1 ? group + ".safetensors" : fmt::format("{}-rank_{:05}.safetensors", group, rank);
        SafetensorsWriter writer((folder / name).string(), layout);
        for (size_t i = 0; i < members.size(); ++i)
            writer.write(layout[i].name, members[i]->produce ? members[i]->produce() : members[i]->value);
        const FileDigest digest = writer.finish();
        proto::File& file = *report.add_files();
        file.set_name(name);
        file.set_bytes(digest.bytes);
        file.set_xxh64(digest.xxh64);
    }
    return report;
}

void merge(proto::Manifest& manifest, const proto::RankReport& report) {
    const auto first = static_cast<uint32_t>(manifest.files_size());
    manifest.mutable_files()->MergeFrom(report.files());
    for (const auto& part : report.parts()) {
        proto::TensorPart& added = *manifest.add_parts();
        added = part;
        added.set_file(first + part.file());
    }
}

// Removes a checkpoint in one stroke for anyone who looks: a kill in the middle leaves a temporary folder.
void remove_checkpoint(const fs::path& path) {
    const fs::path hidden = path.parent_path() / (kTemporary + ("old-" + path.filename().string()));
    std::error_code error;
    fs::remove_all(hidden, error);
    fs::rename(path, hidden, error);
    fs::remove_all(error ? path : hidden, error);
}

void remove_stale(const fs::path& folder, const CheckpointLog& log) {
    std::error_code error;
    std::vector<fs::path> stale;
    for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error))
        if (entry->path().filename().string().starts_with(kTemporary)) stale.push_back(entry->path());
    for (const auto& path : stale) {
        fs::remove_all(path, error);
        if (log) log(fmt::format("removed {}, left by a save that never ended", path.string()));
    }
}

// Puts the finished folder under its name; one that is there already (of the same step) is swapped out.
void put_in_place(const fs::path& temporary, const fs::path& final) {
    std::error_code ignored;
    if (fs::exists(final, ignored)) {
        if (::renameat2(AT_FDCWD, temporary.c_str(), AT_FDCWD, final.c_str(), RENAME_EXCHANGE) == 0) {
            sync_folder(final.parent_path().string());
            fs::remove_all(temporary, ignored);
            return;
        }
        remove_checkpoint(final);  // a file system that cannot swap
    }
    LEVIN_CHECK(::rename(temporary.c_str(), final.c_str()) == 0, "checkpoint " + final.string(),
                "cannot be put in place: {}", std::strerror(errno));
    sync_folder(final.parent_path().string());
}

// Removes what is older than the newest `keep` that look good. Sizes are checked, not hashes: that would read
// everything at every save.
void prune(const fs::path& folder, int64_t keep) {
    if (keep <= 0) return;
    auto found = checkpoint_folders(folder.string());
    std::reverse(found.begin(), found.end());
    int64_t good = 0;
    for (const auto& [step, path] : found) {
        if (good >= keep) {
            remove_checkpoint(path);
            continue;
        }
        try {
            check_files(path, read_manifest(path), false);
            ++good;
        } catch (const Error&) {  // a bad one counts for nothing and goes once enough good ones are newer
        }
    }
}

void complete(const fs::path& temporary, const fs::path& final, proto::Manifest& manifest, int ranks) {
    for (int rank = 0; rank < ranks; ++rank) {
        const fs::path path = temporary / report_name(rank);
        proto::RankReport report;
        LEVIN_CHECK(report.ParseFromString(read_text_file(path.string())), "checkpoint " + final.string(),
                    "the report of rank {} is garbled", rank);
        merge(manifest, report);
        fs::remove(path);
    }
    write_manifest(temporary.string(), manifest);
    put_in_place(temporary, final);
}

}  // namespace

std::string save_checkpoint(const std::string& folder, const CheckpointState& state,
                            const std::vector<CheckpointTensor>& tensors, const SaveOptions& options) {
    const fs::path final = fs::path(folder) / checkpoint_name(state.step);
    const fs::path temporary = fs::path(folder) / (kTemporary + checkpoint_name(state.step));
    LEVIN_CHECK(options.ranks == 1 || options.first_problem, "checkpoint", "{} ranks need first_problem",
                options.ranks);
    std::string problem;
    // Runs a stage on this rank; afterwards every rank knows whether it went well everywhere.
    const auto stage = [&](bool mine, const auto& work) {
        if (mine && problem.empty()) {
            try {
                work();
            } catch (const std::exception& error) {
                problem = error.what();
            }
        }
        if (options.ranks > 1) problem = options.first_problem(problem);
        return problem.empty();
    };
    const bool leader = options.rank == 0;

    bool good = stage(leader, [&] {
        fs::create_directories(folder);
        remove_stale(folder, options.log);
        fs::create_directory(temporary);
    });
    good = good && stage(true, [&] {
               const proto::RankReport report = write_parts(temporary, tensors, options.rank, options.ranks);
               write_text_file((temporary / report_name(options.rank)).string(), report.SerializeAsString());
           });
    good = good && stage(leader, [&] {
               proto::Manifest manifest;
               manifest.set_format_version(kManifestVersion);
               manifest.set_created_unix_seconds(std::chrono::duration_cast<std::chrono::seconds>(
                                                     std::chrono::system_clock::now().time_since_epoch())
                                                     .count());
               manifest.set_step(state.step);
               manifest.set_tokens(state.tokens);
               manifest.set_next_sample(state.next_sample);
               manifest.set_seed(state.seed);
               manifest.set_model_json(state.model_json);
               manifest.set_config_yaml(state.config_yaml);
               for (const auto& [key, value] : state.fields) (*manifest.mutable_fields())[key] = value;
               complete(temporary, final, manifest, options.ranks);
               prune(folder, options.keep);
           });
    if (!good) {
        std::error_code ignored;
        if (leader) fs::remove_all(temporary, ignored);
        throw Error(Fault::internal, "checkpoint " + final.string(),
                    "could not be saved; the earlier ones are untouched. " + problem);
    }
    return final.string();
}

}  // namespace levin
