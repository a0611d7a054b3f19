// Text files of any size as a stream of bytes: plain, gzip (several members too) or zstd (several frames
// too), told apart by their first bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace levin {

class TextReader {
public:
    // Throws Error(input) when the file is missing or unreadable.
    explicit TextReader(const std::string& path);
    ~TextReader();
    TextReader(const TextReader&) = delete;
    TextReader& operator=(const TextReader&) = delete;

    // Appends up to `size` decompressed bytes to `out`; false at the end of the file. Throws Error(input)
    // when the compressed data is damaged or ends in the middle.
    bool read(size_t size, std::string& out);

    const std::string& path() const;
    // Bytes of the file as it lies on the disk: consumed so far, and in all. For progress.
    uint64_t position() const;
    uint64_t size() const;

private:
    struct Members;
    std::unique_ptr<Members> members_;
};

}  // namespace levin
