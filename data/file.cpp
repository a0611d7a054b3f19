#include "data/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <utility>

#include "kernels/base/error.h"

namespace levin {

namespace {

constexpr size_t kBufferSize = size_t{1} << 20;

// A call of the operating system on a file; `fault` says whose fault a failure is.
#define LEVIN_FILE_CALL(condition, fault, path, action)                                     \
    do {                                                                                    \
        if (!(condition)) fail(fault, path, "cannot {}: {}", action, std::strerror(errno)); \
    } while (0)

struct Descriptor {
    int value = -1;
    ~Descriptor() {
        if (value >= 0) ::close(value);
    }
};

int open_regular(const std::string& path, size_t& size) {
    Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
    LEVIN_FILE_CALL(file.value >= 0, Fault::input, path, "open the file");
    struct stat info {};
    LEVIN_FILE_CALL(::fstat(file.value, &info) == 0, Fault::input, path, "read the file's size");
    LEVIN_REQUIRE(S_ISREG(info.st_mode), path, "is not a regular file; give the path of a file");
    size = static_cast<size_t>(info.st_size);
    return std::exchange(file.value, -1);
}

}  // namespace

MappedFile::MappedFile(const std::string& path) : path_(path) {
    Descriptor file{open_regular(path, size_)};
    if (size_ == 0) return;  // mmap refuses an empty range
    void* address = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, file.value, 0);
    LEVIN_FILE_CALL(address != MAP_FAILED, Fault::internal, path, "map the file into memory");
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

AtomicFile::AtomicFile(std::string path) : path_(std::move(path)) {
    static std::atomic<int> count{0};
    temporary_ = fmt::format("{}.tmp-{}-{}", path_, ::getpid(), count++);
    descriptor_ = ::open(temporary_.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    LEVIN_FILE_CALL(descriptor_ >= 0, Fault::input, temporary_, "create the file");
    buffer_.reserve(kBufferSize);
}

AtomicFile::~AtomicFile() {
    if (descriptor_ >= 0) ::close(descriptor_);
    if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void AtomicFile::write(const void* data, size_t size) {
    if (size == 0) return;
    synced_ = false;
    if (buffer_.size() + size > kBufferSize) flush();
    const auto* bytes = static_cast<const uint8_t*>(data);
    buffer_.insert(buffer_.end(), bytes, bytes + size);
    size_ += size;
    if (buffer_.size() >= kBufferSize) flush();
}

void AtomicFile::flush() {
    size_t done = 0;
    while (done < buffer_.size()) {
        const ssize_t n = ::write(descriptor_, buffer_.data() + done, buffer_.size() - done);
        if (n < 0 && errno == EINTR) continue;
        LEVIN_FILE_CALL(n > 0, Fault::internal, temporary_, "write to the file");
        done += static_cast<size_t>(n);
    }
    buffer_.clear();
}

void AtomicFile::truncate(uint64_t size) {
    flush();
    LEVIN_CHECK(size <= size_, temporary_, "truncate to {} bytes, but only {} were written", size, size_);
    LEVIN_FILE_CALL(::ftruncate(descriptor_, static_cast<off_t>(size)) == 0, Fault::internal, temporary_,
                    "shorten the file");
    LEVIN_FILE_CALL(::lseek(descriptor_, static_cast<off_t>(size), SEEK_SET) >= 0, Fault::internal,
                    temporary_, "seek in the file");
    size_ = size;
}

void AtomicFile::sync() {
    if (synced_) return;
    flush();
    LEVIN_FILE_CALL(::fsync(descriptor_) == 0, Fault::internal, temporary_, "write the file to the disk");
    synced_ = true;
}

void AtomicFile::commit() {
    sync();
    LEVIN_FILE_CALL(::rename(temporary_.c_str(), path_.c_str()) == 0, Fault::internal, path_,
                    "rename to the file");
    temporary_.clear();
    const int open_file = std::exchange(descriptor_, -1);
    LEVIN_FILE_CALL(::close(open_file) == 0, Fault::internal, path_, "close the file");
    const std::string parent = std::filesystem::path(path_).parent_path().string();
    Descriptor folder{::open(parent.empty() ? "." : parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
    if (folder.value >= 0)
        ::fsync(folder.value);  // some file systems refuse to sync a folder: the file is safe
}

std::string read_small_file(const std::string& path, size_t limit) {
    size_t size = 0;
    Descriptor file{open_regular(path, size)};
    LEVIN_REQUIRE(size <= limit, path, "holds {} bytes, at most {} are sensible for this kind of file", size,
                  limit);
    std::string text(size, '\0');
    size_t done = 0;
    while (done < size) {
        const ssize_t n = ::read(file.value, text.data() + done, size - done);
        if (n < 0 && errno == EINTR) continue;
        LEVIN_FILE_CALL(n >= 0, Fault::input, path, "read the file");
        LEVIN_REQUIRE(n > 0, path, "ended after {} of {} bytes; was it changed while being read?", done,
                      size);
        done += static_cast<size_t>(n);
    }
    return text;
}

bool file_exists(const std::string& path) {
    struct stat info {};
    return ::stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode);
}

}  // namespace levin
