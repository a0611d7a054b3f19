// Files with the digest of what they hold.
#pragma once

#include <memory>

#include "kernels/base/file.h"

namespace levin {

// Size and xxhash64 (seed 0) of a file's bytes.
struct FileDigest {
    uint64_t bytes = 0;
    uint64_t xxh64 = 0;
    bool operator==(const FileDigest&) const = default;
};

// An AtomicFile, its errors too, whose bytes are hashed as they are written.
class OutputFile {
public:
    explicit OutputFile(std::string path);
    ~OutputFile();

    void write(const void* data, size_t bytes);
    void write(std::string_view text) { write(text.data(), text.size()); }
    // Commits the file.
    FileDigest finish();
    const std::string& path() const { return file_.path(); }
    struct Hash;

private:
    AtomicFile file_;
    std::unique_ptr<Hash> hash_;
};

FileDigest digest_of_file(const std::string& path);
FileDigest digest_of_bytes(std::string_view bytes);
// Copies bytes, not attributes; durable when it returns.
void copy_file_durably(const std::string& source, const std::string& destination);

}  // namespace levin
