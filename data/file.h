// Files as the data room reads them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

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

// Little-endian load from any address.
template <class T>
T load_unaligned(const uint8_t* at) {
    T value;
    __builtin_memcpy(&value, at, sizeof(T));
    return value;
}

bool file_exists(const std::string& path);

}  // namespace levin
