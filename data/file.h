// Files as the data room needs them: mapped for reading, and written so that a crash leaves the old file or
// the new one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace levin {

// A whole file, mapped read-only. Shrinking the file while it is mapped ends the process with SIGBUS, as for
// every program that maps files; a file that was short from the start is found by the readers' size checks.
class MappedFile {
public:
    MappedFile() = default;
    // Throws Error(input) when the file is missing, unreadable or not a regular file.
    explicit MappedFile(const std::string& path);
    ~MappedFile();
    MappedFile(MappedFile&& other) noexcept;
    MappedFile& operator=(MappedFile&& other) noexcept;
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;

    std::span<const uint8_t> bytes() const { return {data_, size_}; }
    size_t size() const { return size_; }
    const std::string& path() const { return path_; }

private:
    void unmap();

    const uint8_t* data_ = nullptr;
    size_t size_ = 0;
    std::string path_;
};

// A file under a temporary name beside `path`; commit() makes it durable and gives it its name. Destroyed
// without commit() it removes the temporary file. Every failure (full disk, no permission) throws Error
// naming the file.
class AtomicFile {
public:
    explicit AtomicFile(std::string path);
    ~AtomicFile();
    AtomicFile(const AtomicFile&) = delete;
    AtomicFile& operator=(const AtomicFile&) = delete;

    void write(const void* data, size_t size);
    void write(std::string_view text) { write(text.data(), text.size()); }
    // Forgets what was written beyond the first `size` bytes.
    void truncate(uint64_t size);
    uint64_t size() const { return size_; }
    // Hands what was written to the kernel, so that another reader of temporary_path() sees it.
    void flush();
    const std::string& temporary_path() const { return temporary_; }
    // Flushes to the disk (fsync); the file keeps its temporary name.
    void sync();
    // sync(), then renames to the final name and syncs the folder.
    void commit();

private:
    std::string path_, temporary_;
    int descriptor_ = -1;
    uint64_t size_ = 0;
    std::vector<uint8_t> buffer_;
    bool synced_ = false;
};

// Little-endian load from any address.
template <class T>
T load_unaligned(const uint8_t* at) {
    T value;
    __builtin_memcpy(&value, at, sizeof(T));
    return value;
}

// The whole of a small text file. Throws Error(input) when it is missing or holds more than `limit` bytes.
std::string read_small_file(const std::string& path, size_t limit);
bool file_exists(const std::string& path);

}  // namespace levin
