#include "checkpoint/native.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <filesystem>

#include "checkpoint/manifest.h"
#include "checkpoint/safetensors.h"
#include "kernels/base/error.h"

namespace levin {

namespace fs = std::filesystem;

std::string checkpoint_name(int64_t step) { return fmt::format("step_{:08}", step); }

namespace {

// A box of a tensor and where its bytes are.
struct Part {
    Shape offset, shape;
    size_t file;
    std::string key;
};

struct Entry {
    std::string group, name;
    DType dtype;
    Shape global_shape;
    std::vector<Part> parts;
};

bool overlap(const Part& a, const Part& b) {
    for (size_t i = 0; i < a.shape.size(); ++i)
        if (a.offset[i] + a.shape[i] <= b.offset[i] || b.offset[i] + b.shape[i] <= a.offset[i]) return false;
    return true;
}

// Copies the part of box `from` (extents, first element `from_offset` in the whole) that lies in box `to`.
void copy_box(const Tensor& from, const Shape& from_offset, Tensor& to, const Shape& to_offset) {
    const size_t rank = from.shape().size();
    Shape begin(rank), extent(rank);
    for (size_t i = 0; i < rank; ++i) {
        const auto axis = static_cast<int64_t>(i);
        begin[i] = std::max(from_offset[i], to_offset[i]);
        extent[i] = std::min(from_offset[i] + from.dim(axis), to_offset[i] + to.dim(axis)) - begin[i];
        if (extent[i] <= 0) return;
    }
    const size_t width = size_of(from.dtype());
    const size_t run = rank == 0 ? width : static_cast<size_t>(extent[rank - 1]) * width;
    Shape index(rank, 0);
    for (;;) {
        int64_t source = 0, target = 0;
        for (size_t i = 0; i < rank; ++i) {
            const auto axis = static_cast<int64_t>(i);
            source += (begin[i] - from_offset[i] + index[i]) * from.stride(axis);
            target += (begin[i] - to_offset[i] + index[i]) * to.stride(axis);
        }
        std::memcpy(static_cast<char*>(to.data()) + static_cast<size_t>(target) * width,
                    static_cast<const char*>(from.data()) + static_cast<size_t>(source) * width, run);
        if (rank < 2) return;
        size_t axis = rank - 1;  // the last axis is copied as a run
        while (axis-- > 0) {
            if (++index[axis] < extent[axis]) break;
            index[axis] = 0;
            if (axis == 0) return;
        }
    }
}

// The step of a folder's name; -1 when it is not one of ours.
int64_t step_of(const std::string& name) {
    if (!name.starts_with("step_") || name.size() < 6 || name.size() > 23) return -1;
    int64_t step = -1;
    const auto [end, error] = std::from_chars(name.data() + 5, name.data() + name.size(), step);
    return error == std::errc() && end == name.data() + name.size() && step >= 0 ? step : -1;
}

}  // namespace

struct Checkpoint::Contents {
    std::string path;
    CheckpointState state;
    int64_t created = 0;
    uint64_t bytes = 0;
    std::vector<SafetensorsReader> files;
    std::vector<Entry> entries;
    std::map<std::pair<std::string, std::string>, size_t> index;

    const Entry& entry(const std::string& group, const std::string& name) const {
        const auto found = index.find({group, name});
        LEVIN_REQUIRE(found != index.end(), "checkpoint " + path, "holds no tensor '{}' in group '{}'", name,
                      group);
        return entries[found->second];
    }
    void add(const proto::TensorPart& part);
    void check_coverage() const;
};

void Checkpoint::Contents::add(const proto::TensorPart& part) {
    const std::string where = "checkpoint " + path;
    const Shape global(part.global_shape().begin(), part.global_shape().end());
    Part box{Shape(part.offset().begin(), part.offset().end()),
             Shape(part.shape().begin(), part.shape().end()), part.file(), part.key()};
    bool fits = box.offset.size() == global.size() && box.shape.size() == global.size();
    for (size_t i = 0; fits && i < global.size(); ++i)
        fits = global[i] >= 0 && box.offset[i] >= 0 && box.shape[i] >= 0 && box.shape[i] <= global[i] &&
               box.offset[i] <= global[i] - box.shape[i];
    LEVIN_REQUIRE(fits, where, "tensor '{}': the part {} at {} does not lie in {}", part.name(),
                  to_string(box.shape), to_string(box.offset), to_string(global));
    LEVIN_REQUIRE(box.file < files.size(), where, "tensor '{}' is in file number {} of {}", part.name(),
                  box.file, files.size());
    const DType dtype = dtype_from_string(part.dtype());
    const SafetensorsReader& file = files[box.file];
    LEVIN_REQUIRE(file.contains(box.key) && file.shape(box.key) == box.shape && file.dtype(box.key) == dtype,
                  where, "tensor '{}' should be in {} as '{}' {} {}, but is not", part.name(), file.where(),
                  box.key, part.dtype(), to_string(box.shape));
    const auto [place, fresh] = index.emplace(std::pair(part.group(), part.name()), entries.size());
    if (fresh) entries.push_back({part.group(), part.name(), dtype, global, {}});
    Entry& entry = entries[place->second];
    LEVIN_REQUIRE(entry.global_shape == global && entry.dtype == dtype, where,
                  "two parts of tensor '{}' disagree on its shape or type", part.name());
    entry.parts.push_back(std::move(box));
}

void Checkpoint::Contents::check_coverage() const {
    for (const Entry& entry : entries) {
        int64_t held = 0;
        bool disjoint = true;
        for (size_t i = 0; i < entry.parts.size(); ++i) {
            held += element_count(entry.parts[i].shape);
            for (size_t j = 0; j < i; ++j) disjoint &= !overlap(entry.parts[i], entry.parts[j]);
        }
        LEVIN_REQUIRE(
            disjoint && held == element_count(entry.global_shape), "checkpoint " + path,
            "the {} parts of tensor '{}' hold {} numbers of {}{}: a rank's part is missing or double",
            entry.parts.size(), entry.name, held, element_count(entry.global_shape),
            disjoint ? "" : " and overlap");
    }
}

Checkpoint::Checkpoint(std::unique_ptr<Contents> contents) : contents_(std::move(contents)) {}
Checkpoint::~Checkpoint() = default;
Checkpoint::Checkpoint(Checkpoint&&) noexcept = default;
Checkpoint& Checkpoint::operator=(Checkpoint&&) noexcept = default;

Checkpoint Checkpoint::open(const std::string& path, bool hashes) {
    auto contents = std::make_unique<Contents>();
    contents->path = path;
    const proto::Manifest manifest = read_manifest(path);
    check_files(path, manifest, hashes);
    contents->created = manifest.created_unix_seconds();
    CheckpointState& state = contents->state;
    state.step = manifest.step();
    state.tokens = manifest.tokens();
    state.next_sample = manifest.next_sample();
    state.seed = manifest.seed();
    state.model_json = manifest.model_json();
    state.config_yaml = manifest.config_yaml();
    state.fields = {manifest.fields().begin(), manifest.fields().end()};
    for (const auto& file : manifest.files()) {
        contents->files.emplace_back((fs::path(path) / file.name()).string());
        contents->bytes += file.bytes();
    }
    for (const auto& part : manifest.parts()) contents->add(part);
    contents->check_coverage();
    return Checkpoint(std::move(contents));
}

const std::string& Checkpoint::path() const { return contents_->path; }
const CheckpointState& Checkpoint::state() const { return contents_->state; }
int64_t Checkpoint::created_unix_seconds() const { return contents_->created; }
uint64_t Checkpoint::bytes() const { return contents_->bytes; }

bool Checkpoint::has_group(const std::string& group) const {
    return std::any_of(contents_->entries.begin(), contents_->entries.end(),
                       [&](const Entry& entry) { return entry.group == group; });
}

std::vector<std::string> Checkpoint::names(const std::string& group) const {
    std::vector<std::string> names;
    for (const Entry& entry : contents_->entries)
        if (entry.group == group) names.push_back(entry.name);
    return names;
}

bool Checkpoint::contains(const std::string& group, const std::string& name) const {
    return contents_->index.count({group, name}) != 0;
}
const Shape& Checkpoint::shape(const std::string& group, const std::string& name) const {
    return contents_->entry(group, name).global_shape;
}
DType Checkpoint::dtype(const std::string& group, const std::string& name) const {
    return contents_->entry(group, name).dtype;
}

Tensor Checkpoint::read(const std::string& group, const std::string& name) const {
    const Shape& shape = contents_->entry(group, name).global_shape;
    return read_part(group, name, Shape(shape.size(), 0), shape);
}

Tensor Checkpoint::read_part(const std::string& group, const std::string& name, const Shape& offset,
                             const Shape& shape) const {
    const Entry& entry = contents_->entry(group, name);
    bool fits = offset.size() == entry.global_shape.size() && shape.size() == offset.size();
    for (size_t i = 0; fits && i < shape.size(); ++i)
        fits = offset[i] >= 0 && shape[i] >= 0 && offset[i] + shape[i] <= entry.global_shape[i];
    LEVIN_CHECK(fits, "checkpoint " + path(), "asked for {} at {} of '{}' {}", to_string(shape),
                to_string(offset), name, to_string(entry.global_shape));
    const Part wanted{offset, shape, 0, {}};
    Tensor result;
    for (const Part& part : entry.parts) {
        if (part.offset == offset && part.shape == shape) return contents_->files[part.file].read(part.key);
        if (!overlap(part, wanted)) continue;
        if (!result.defined()) result = Tensor::empty(shape, entry.dtype);
        copy_box(contents_->files[part.file].read(part.key), part.offset, result, offset);
    }
    return result.defined() ? result : Tensor::empty(shape, entry.dtype);  // a part without numbers
}

std::vector<std::pair<int64_t, std::string>> checkpoint_folders(const std::string& folder) {
    std::vector<std::pair<int64_t, std::string>> found;
    std::error_code error;
    for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
        const int64_t step = step_of(entry->path().filename().string());
        std::error_code ignored;
        if (step >= 0 && entry->is_directory(ignored)) found.emplace_back(step, entry->path().string());
    }
    LEVIN_REQUIRE(!error || error == std::errc::no_such_file_or_directory, "checkpoint " + folder,
                  "cannot be listed: {}", error.message());
    std::sort(found.begin(), found.end());
    return found;
}

std::optional<Checkpoint> open_newest_checkpoint(const std::string& folder, const CheckpointLog& log) {
    auto found = checkpoint_folders(folder);
    std::reverse(found.begin(), found.end());
    std::string reasons;
    for (const auto& [step, path] : found) {
        try {
            return Checkpoint::open(path);
        } catch (const Error& error) {
            if (log) log(fmt::format("checkpoint {} is bad and skipped: {}", path, error.what()));
            reasons += fmt::format("\n  {}: {}", path, error.what());
        }
    }
    LEVIN_REQUIRE(found.empty(), "checkpoint " + folder,
                  "none of its {} checkpoints is good; restore one from a backup, or start again in another "
                  "folder:{}",
                  found.size(), reasons);
    return std::nullopt;
}

std::vector<CheckpointSummary> list_checkpoints(const std::string& folder, bool hashes) {
    std::vector<CheckpointSummary> list;
    for (const auto& [step, path] : checkpoint_folders(folder)) {
        CheckpointSummary summary;
        summary.path = path;
        summary.step = step;
        try {
            const Checkpoint checkpoint = Checkpoint::open(path, hashes);
            summary.bytes = checkpoint.bytes();
            summary.created_unix_seconds = checkpoint.created_unix_seconds();
        } catch (const Error& error) {
            summary.problem = error.what();
        }
        list.push_back(std::move(summary));
    }
    return list;
}

}  // namespace levin
