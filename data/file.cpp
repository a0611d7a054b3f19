#include "data/file.h"

#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "kernels/base/file.h"

namespace levin {

MappedFile::MappedFile(const std::string& path) : path_(path) {
    const InputFile file(path);
    size_ = file.size();
    if (size_ == 0) return;  // mmap refuses an empty range
    void* address = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, file.descriptor(), 0);
    LEVIN_CHECK(address != MAP_FAILED, "file " + path, "cannot be mapped into memory: {}",
                std::strerror(errno));
    data_ = static_cast<const uint8_t*>(address);
}

MappedFile::~MappedFile() { unmap(); }

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      path_(std::move(other.path_)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
    if (this != &other) {
        unmap();
        data_ = std::exchange(other.data_, nullptr);
        size_ = std::exchange(other.size_, 0);
        path_ = std::move(other.path_);
    }
    return *this;
}

void MappedFile::unmap() {
    if (data_ != nullptr) ::munmap(const_cast<uint8_t*>(data_), size_);
}

bool file_exists(const std::string& path) {
    struct stat info {};
    return ::stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode);
}

}  // namespace levin
