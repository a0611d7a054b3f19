// The safetensors format: u64 header length (little-endian), JSON header, then the tensors' bytes.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "checkpoint/file.h"
#include "core/tensor.h"

namespace levin {

// Name, element type and shape of a tensor that is to be written.
struct TensorInfo {
    std::string name;
    DType dtype = DType::f32;
    Shape shape;
};

// Where a tensor lies in a file. `type` is the format's own name, so that types levin has no arithmetic for
// (F8_E5M2, BOOL) can be listed; reading one of those is an error. F16 is read as f32, which holds every
// value.
struct SafetensorsEntry {
    std::string name;
    std::string type;
    Shape shape;
    uint64_t begin = 0, end = 0;  // bytes, from the end of the header
};

struct SafetensorsHeader {
    uint64_t data_begin = 0;                // bytes from the start of the file
    std::vector<SafetensorsEntry> entries;  // by offset
    std::map<std::string, std::string> metadata;
};

// Parses and checks a header: `header` is the JSON text, `data_bytes` what follows it in the file. Throws
// Error(input) naming `where` and the tensor for: invalid JSON, a key twice, unknown fields or types,
// negative or overflowing sizes, shape and offsets that disagree, holes, overlaps, bytes left over.
SafetensorsHeader parse_safetensors_header(std::string_view header, uint64_t data_bytes,
                                           const std::string& where);
inline constexpr uint64_t kSafetensorsHeaderLimit = 100'000'000;

// A set of named tensors in files, whatever the format.
class TensorReader {
public:
    virtual ~TensorReader() = default;
    virtual const std::vector<std::string>& names() const = 0;
    virtual bool contains(const std::string& name) const = 0;
    // The three below throw Error(input) when there is no such tensor.
    virtual const Shape& shape(const std::string& name) const = 0;
    // What read() returns. Throws Error(input) for a type levin does not read.
    virtual DType dtype(const std::string& name) const = 0;
    // A new tensor in host memory.
    virtual Tensor read(const std::string& name) const = 0;
    // For messages: the file or folder.
    virtual const std::string& where() const = 0;
};

// Numbers as they lie in a file, and IEEE halves widened to f32, as new tensors in host memory.
Tensor read_numbers(const InputFile& file, uint64_t offset, const Shape& shape, DType dtype);
Tensor read_half(const InputFile& file, uint64_t offset, const Shape& shape);

// The files that an index ({"weight_map": {tensor: file}}) names, each once. Throws Error(input) for a name
// that leads out of the index's folder.
std::vector<std::string> shards_of_index(const std::string& path);

// One .safetensors file, or the shards of a model.safetensors.index.json.
class SafetensorsReader : public TensorReader {
public:
    // `path`: a file, an index file, or a folder that holds model.safetensors or
    // model.safetensors.index.json.
    explicit SafetensorsReader(const std::string& path);

    const std::vector<std::string>& names() const override { return names_; }
    bool contains(const std::string& name) const override { return places_.count(name) != 0; }
    const Shape& shape(const std::string& name) const override { return entry(name).shape; }
    DType dtype(const std::string& name) const override;
    Tensor read(const std::string& name) const override;
    const std::string& where() const override { return path_; }
    const SafetensorsEntry& entry(const std::string& name) const;

private:
    struct File {
        InputFile input;
        SafetensorsHeader header;
    };
    struct Place {
        size_t file, entry;
    };
    void add_file(const std::string& path);
    void open_index(const std::string& path);
    const Place& place(const std::string& name) const;

    std::string path_;
    std::vector<File> files_;
    std::vector<std::string> names_;
    std::unordered_map<std::string, Place> places_;
};

// Writes one file, tensor by tensor in the order of `layout`; only one tensor need be in memory. Tensors may
// lie on any device and be strided. Readers in other languages want every tensor aligned to its element: put
// wider types first.
class SafetensorsWriter {
public:
    SafetensorsWriter(const std::string& path, std::vector<TensorInfo> layout,
                      const std::map<std::string, std::string>& metadata = {{"format", "pt"}});
    // The next tensor of the layout; a name, type or shape other than announced is a bug.
    void write(const std::string& name, const Tensor& value);
    // Makes the file durable under its name. All tensors must have been written.
    FileDigest finish();

private:
    std::vector<TensorInfo> layout_;
    size_t next_ = 0;
    OutputFile file_;
};

inline constexpr uint64_t kDefaultShardBytes = 5'000'000'000;

// Writes folder/model.safetensors, or, when the tensors take more than `shard_bytes`,
// model-0000i-of-0000N.safetensors and model.safetensors.index.json. `value(i)` is asked once for each tensor
// of the layout. Within a file wider types come first.
void write_safetensors_folder(const std::string& folder, const std::vector<TensorInfo>& layout,
                              uint64_t shard_bytes, const std::function<Tensor(size_t)>& value);

}  // namespace levin
