// Files written so that a crash, a full disk or a killed process never leaves a half-written one under its
// final name, and files read with bounds.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace levin {

// Size and xxhash64 (seed 0) of a file's bytes.
struct FileDigest {
    uint64_t bytes = 0;
    uint64_t xxh64 = 0;
    bool operator==(const FileDigest&) const = default;
};

// A new file at `path`. Bytes go to a hidden temporary file beside it; finish() flushes it to the disk and
// renames it into place. Destroyed before finish(), it removes the temporary file. Every failure (full disk,
// quota, no permission) throws Error(internal) with the path and the system's reason.
class OutputFile {
public:
    explicit OutputFile(std::string path);
    ~OutputFile();
    OutputFile(const OutputFile&) = delete;
    OutputFile& operator=(const OutputFile&) = delete;

    void write(const void* data, size_t bytes);
    void write(std::string_view text) { write(text.data(), text.size()); }
    FileDigest finish();
    const std::string& path() const { return path_; }
    struct Hash;

private:
    std::string path_, temporary_;
    int descriptor_ = -1;
    uint64_t written_ = 0;
    std::unique_ptr<Hash> hash_;
};

// Reads at any offset. A read that fails or comes up short throws Error(input). Not memory-mapped: a file cut
// short by someone else while it is read is then an error message, not a SIGBUS.
class InputFile {
public:
    explicit InputFile(std::string path);
    ~InputFile();
    InputFile(InputFile&& other) noexcept;
    InputFile(const InputFile&) = delete;
    InputFile& operator=(const InputFile&) = delete;

    uint64_t size() const { return size_; }
    const std::string& path() const { return path_; }
    void read(uint64_t offset, void* destination, size_t bytes) const;

private:
    std::string path_;
    int descriptor_ = -1;
    uint64_t size_ = 0;
};

// The whole file. Throws Error(input) when it is missing or larger than `limit`.
std::string read_text_file(const std::string& path, uint64_t limit = 256u << 20);
// OutputFile with these bytes.
FileDigest write_text_file(const std::string& path, std::string_view text);
FileDigest digest_of_file(const std::string& path);
FileDigest digest_of_bytes(std::string_view bytes);
// Copies bytes, not attributes; durable when it returns.
void copy_file_durably(const std::string& source, const std::string& destination);
// Makes the names inside a folder durable. File systems that know no such thing are let be.
void sync_folder(const std::string& path);

}  // namespace levin
