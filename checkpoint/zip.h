// Zip archives whose entries are stored without compression, as torch.save() writes them (zip64 included).
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "checkpoint/file.h"

namespace levin {

class StoredZip {
public:
    struct Entry {
        uint64_t offset, bytes;  // of the content within the file
    };
    // Reads the directory. Throws Error(input) for anything else than a sound archive of stored entries.
    explicit StoredZip(const std::string& path);

    const std::map<std::string, Entry>& entries() const { return entries_; }
    const InputFile& file() const { return file_; }

private:
    void read_directory(uint64_t offset, uint64_t bytes, uint64_t count);

    InputFile file_;
    std::map<std::string, Entry> entries_;
};

}  // namespace levin
