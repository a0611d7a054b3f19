#include "checkpoint/safetensors.h"

#include <algorithm>
#include <bit>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "kernels/base/error.h"

namespace levin {

static_assert(std::endian::native == std::endian::little, "safetensors holds little-endian numbers");

namespace {

namespace fs = std::filesystem;

const std::vector<std::pair<std::string_view, DType>>& type_names() {
    static const std::vector<std::pair<std::string_view, DType>> names{
        {"F64", DType::f64}, {"F32", DType::f32}, {"BF16", DType::bf16},
        {"I64", DType::i64}, {"I32", DType::i32}, {"I16", DType::i16},
        {"I8", DType::i8},   {"U16", DType::u16}, {"U8", DType::u8}};
    return names;
}

std::string type_name(DType dtype) {
    for (const auto& [name, type] : type_names())
        if (type == dtype) return std::string(name);
    return "?";
}

// IEEE half to single, exact.
float widen_half(uint16_t half) {
    const uint32_t sign = uint32_t{half & 0x8000u} << 16, exponent = (half >> 10) & 31u,
                   fraction = half & 0x3ffu;
    if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (fraction << 13));
    if (exponent == 0) {
        const float value = static_cast<float>(fraction) * 0x1p-24f;
        return sign ? -value : value;
    }
    return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (fraction << 13));
}

std::string name_in(const std::string& file) { return "safetensors " + file; }

nlohmann::json weight_map(const std::string& path) {
    const auto index = nlohmann::json::parse(read_text_file(path), nullptr, false);
    LEVIN_REQUIRE(index.is_object() && index.contains("weight_map") && index["weight_map"].is_object(), path,
                  "is no valid index: expected JSON with an object \"weight_map\"");
    return index["weight_map"];
}

}  // namespace

Tensor read_numbers(const InputFile& file, uint64_t offset, const Shape& shape, DType dtype) {
    Tensor value = Tensor::empty(shape, dtype);
    file.read(offset, value.data(), value.bytes());
    return value;
}

Tensor read_half(const InputFile& file, uint64_t offset, const Shape& shape) {
    Tensor value = Tensor::empty(shape, DType::f32);
    std::vector<uint16_t> halves(static_cast<size_t>(value.count()));
    file.read(offset, halves.data(), halves.size() * 2);
    std::transform(halves.begin(), halves.end(), value.data<float>(), widen_half);
    return value;
}

std::vector<std::string> shards_of_index(const std::string& path) {
    std::set<std::string> shards;
    const auto map = weight_map(path);
    for (const auto& [name, file] : map.items()) {
        LEVIN_REQUIRE(file.is_string(), path, "weight_map of '{}' is not a file name", name);
        shards.insert(file.get<std::string>());
    }
    // A shard lies beside its index; a path that leads elsewhere is an attack or a mistake.
    for (const auto& shard : shards)
        LEVIN_REQUIRE(!shard.empty() && fs::path(shard).filename() == shard && shard != "..", path,
                      "weight_map names the file '{}'; expected a name without folders", shard);
    return {shards.begin(), shards.end()};
}

SafetensorsReader::SafetensorsReader(const std::string& path) : path_(path) {
    std::error_code ignored;
    if (fs::is_directory(path, ignored)) {
        const std::string single = (fs::path(path) / "model.safetensors").string();
        const std::string index = single + ".index.json";
        const bool sharded = !fs::exists(single, ignored);
        LEVIN_REQUIRE(!sharded || fs::exists(index, ignored), path,
                      "holds neither model.safetensors nor model.safetensors.index.json");
        sharded ? open_index(index) : add_file(single);
    } else {
        path.ends_with(".json") ? open_index(path) : add_file(path);
    }
}

void SafetensorsReader::add_file(const std::string& path) {
    const std::string where = name_in(path);
    File file{InputFile(path), {}};
    LEVIN_REQUIRE(file.input.size() >= 8, where, "has {} bytes; even an empty one has more than 8",
                  file.input.size());
    uint64_t length = 0;
    file.input.read(0, &length, 8);
    LEVIN_REQUIRE(
        length <= kSafetensorsHeaderLimit, where,
        "its header would have {} bytes; more than {} is not allowed: corrupt, or not a safetensors file",
        length, kSafetensorsHeaderLimit);
    LEVIN_REQUIRE(length <= file.input.size() - 8, where,
                  "its header has {} bytes, the whole file {}: truncated", length, file.input.size());
    std::string text(length, '\0');
    file.input.read(8, text.data(), length);
    file.header = parse_safetensors_header(text, file.input.size() - 8 - length, where);
    file.header.data_begin = 8 + length;
    const size_t number = files_.size();
    for (size_t i = 0; i < file.header.entries.size(); ++i) {
        const std::string& name = file.header.entries[i].name;
        LEVIN_REQUIRE(places_.emplace(name, Place{number, i}).second, where,
                      "tensor '{}' is also in another file of the same model", name);
        names_.push_back(name);
    }
    files_.push_back(std::move(file));
}

void SafetensorsReader::open_index(const std::string& path) {
    const fs::path folder = fs::path(path).parent_path();
    for (const auto& shard : shards_of_index(path)) add_file((folder / shard).string());
    const auto map = weight_map(path);
    for (const auto& [name, file] : map.items()) {
        const auto found = places_.find(name);
        LEVIN_REQUIRE(
            found != places_.end() &&
                fs::path(files_[found->second.file].input.path()).filename() == file.get<std::string>(),
            path, "weight_map puts tensor '{}' into {}, but it is not there", name, file.get<std::string>());
    }
}

const SafetensorsReader::Place& SafetensorsReader::place(const std::string& name) const {
    const auto found = places_.find(name);
    LEVIN_REQUIRE(found != places_.end(), name_in(path_), "holds no tensor '{}'", name);
    return found->second;
}

const SafetensorsEntry& SafetensorsReader::entry(const std::string& name) const {
    const Place& at = place(name);
    return files_[at.file].header.entries[at.entry];
}

DType SafetensorsReader::dtype(const std::string& name) const {
    const SafetensorsEntry& found = entry(name);
    if (found.type == "F16") return DType::f32;
    for (const auto& [type, dtype] : type_names())
        if (type == found.type) return dtype;
    fail(Fault::input, name_in(path_),
         "tensor '{}' has type {}, which levin does not read; expected F64, F32, BF16, F16 or a signed "
         "integer",
         name, found.type);
}

Tensor SafetensorsReader::read(const std::string& name) const {
    const DType type = dtype(name);
    const Place& at = place(name);
    const File& file = files_[at.file];
    const SafetensorsEntry& found = file.header.entries[at.entry];
    const uint64_t begin = file.header.data_begin + found.begin;
    return found.type == "F16" ? read_half(file.input, begin, found.shape)
                               : read_numbers(file.input, begin, found.shape, type);
}

namespace {

std::string header_text(const std::vector<TensorInfo>& layout,
                        const std::map<std::string, std::string>& metadata) {
    nlohmann::ordered_json header = nlohmann::ordered_json::object();
    if (!metadata.empty()) header["__metadata__"] = metadata;
    uint64_t at = 0;
    for (const auto& tensor : layout) {
        const uint64_t bytes = static_cast<uint64_t>(element_count(tensor.shape)) * size_of(tensor.dtype);
        LEVIN_CHECK(!header.contains(tensor.name), "safetensors", "tensor '{}' is announced twice",
                    tensor.name);
        header[tensor.name] = {
            {"dtype", type_name(tensor.dtype)}, {"shape", tensor.shape}, {"data_offsets", {at, at + bytes}}};
        at += bytes;
    }
    std::string text = header.dump();
    text.append((8 - text.size() % 8) % 8, ' ');  // the data starts aligned
    return text;
}

}  // namespace

SafetensorsWriter::SafetensorsWriter(const std::string& path, std::vector<TensorInfo> layout,
                                     const std::map<std::string, std::string>& metadata)
    : layout_(std::move(layout)), file_(path) {
    const std::string header = header_text(layout_, metadata);
    const uint64_t length = header.size();
    LEVIN_CHECK(length <= kSafetensorsHeaderLimit, name_in(path), "{} tensors make a header of {} bytes",
                layout_.size(), length);
    file_.write(&length, 8);
    file_.write(header);
}

void SafetensorsWriter::write(const std::string& name, const Tensor& value) {
    LEVIN_CHECK(next_ < layout_.size() && layout_[next_].name == name &&
                    layout_[next_].dtype == value.dtype() && layout_[next_].shape == value.shape(),
                name_in(file_.path()), "tensor '{}' {} {} is not the one announced", name,
                to_string(value.dtype()), to_string(value.shape()));
    ++next_;
    const Tensor host = value.contiguous().to(Device{});
    file_.write(host.data(), host.bytes());
}

FileDigest SafetensorsWriter::finish() {
    LEVIN_CHECK(next_ == layout_.size(), name_in(file_.path()), "{} of {} tensors written", next_,
                layout_.size());
    return file_.finish();
}

void write_safetensors_folder(const std::string& folder, const std::vector<TensorInfo>& layout,
                              uint64_t shard_bytes, const std::function<Tensor(size_t)>& value) {
    const auto bytes_of = [](const TensorInfo& t) {
        return static_cast<uint64_t>(element_count(t.shape)) * size_of(t.dtype);
    };
    std::vector<std::vector<size_t>> shards(1);
    uint64_t total = 0, in_shard = 0;
    for (size_t i = 0; i < layout.size(); ++i) {
        const uint64_t bytes = bytes_of(layout[i]);
        if (!shards.back().empty() && in_shard + bytes > shard_bytes) {
            shards.emplace_back();
            in_shard = 0;
        }
        shards.back().push_back(i);
        in_shard += bytes;
        total += bytes;
    }
    nlohmann::ordered_json index = {{"metadata", {{"total_size", total}}},
                                    {"weight_map", nlohmann::json::object()}};
    for (size_t s = 0; s < shards.size(); ++s) {
        const std::string name = shards.size() == 1
                                     ? std::string("model.safetensors")
                                     : fmt::format("model-{:05}-of-{:05}.safetensors", s + 1, shards.size());
        std::stable_sort(shards[s].begin(), shards[s].end(), [&](size_t a, size_t b) {
            return size_of(layout[a].dtype) > size_of(layout[b].dtype);
        });
        std::vector<TensorInfo> infos;
        for (const size_t i : shards[s]) {
            infos.push_back(layout[i]);
            index["weight_map"][layout[i].name] = name;
        }
        SafetensorsWriter writer((fs::path(folder) / name).string(), std::move(infos));
        for (const size_t i : shards[s]) writer.write(layout[i].name, value(i));
        writer.finish();
    }
    // What an earlier export of another size left here would be found in place of the new files.
    const std::string index_path = (fs::path(folder) / "model.safetensors.index.json").string();
    std::set<std::string> current;
    for (const auto& item : index["weight_map"].items()) current.insert(item.value().get<std::string>());
    for (const auto& entry : fs::directory_iterator(folder)) {
        const std::string name = entry.path().filename().string();
        if (name.starts_with("model") && name.ends_with(".safetensors") && !current.count(name))
            fs::remove(entry.path());
    }
    if (shards.size() == 1)
        fs::remove(index_path);
    else
        write_text_file(index_path, index.dump(2) + "\n");
}

}  // namespace levin
