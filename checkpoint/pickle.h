// Older Hugging Face uploads: pytorch_model.bin, a zip archive with a pickle that describes tensors and files
// with their numbers. A pickle is a program; this reader knows only the few instructions that rebuild a
// dictionary of tensors and refuses every other one, so nothing in a file can be run.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/safetensors.h"
#include "checkpoint/zip.h"

namespace levin {

// A tensor as the pickle describes it: contiguous numbers inside an entry of the archive.
struct PickledTensor {
    std::string storage;       // "data/0"
    std::string storage_type;  // "FloatStorage"
    uint64_t first = 0;        // numbers before it in the storage
    Shape shape;
};

// The tensors of a pickled state dictionary, in its order. Throws Error(input) naming `where` and the byte
// for anything else.
std::vector<std::pair<std::string, PickledTensor>> parse_pickled_tensors(std::string_view pickle,
                                                                         const std::string& where);

class PickleReader : public TensorReader {
public:
    // Does the folder hold pytorch_model.bin or pytorch_model.bin.index.json?
    static bool recognizes(const std::string& folder);
    explicit PickleReader(const std::string& folder);

    const std::vector<std::string>& names() const override { return names_; }
    bool contains(const std::string& name) const override { return places_.count(name) != 0; }
    const Shape& shape(const std::string& name) const override { return place(name).tensor.shape; }
    DType dtype(const std::string& name) const override;
    Tensor read(const std::string& name) const override;
    const std::string& where() const override { return folder_; }

private:
    struct Place {
        size_t archive;
        uint64_t offset;  // in the file
        PickledTensor tensor;
    };
    void add_file(const std::string& path);
    const Place& place(const std::string& name) const;

    std::string folder_;
    std::vector<std::unique_ptr<StoredZip>> archives_;
    std::vector<std::string> names_;
    std::map<std::string, Place> places_;
};

}  // namespace levin
