#include "kernels/base/file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <thread>
#include <utility>

namespace levin {

namespace {

constexpr size_t kBufferSize = size_t{1} << 20;
constexpr size_t kLargestCall = size_t{1} << 30;  // Linux moves at most 2 GiB in one call

[[noreturn]] void write_failed(const std::string& path, int error) {
    const std::string where = "file " + path;
    const char* reason = std::strerror(error);
    switch (error) {
        case ENOENT:
        case ENOTDIR:
        case EACCES:
        case EPERM:
        case EROFS:
            fail(Fault::input, where, "cannot be written: {}; check its folder and permissions", reason);
        case ENOSPC:
        case EDQUOT:
            fail(Fault::internal, where, "cannot be written: {}; make room on that disk", reason);
        default:
            fail(Fault::internal, where, "cannot be written: {}", reason);
    }
}

void write_all(int descriptor, const std::string& path, const char* from, size_t bytes) {
    while (bytes > 0) {
        const ssize_t done = ::write(descriptor, from, std::min(bytes, kLargestCall));
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0) write_failed(path, done < 0 ? errno : EIO);
        from += done;
        bytes -= static_cast<size_t>(done);
    }
}

}  // namespace

AtomicFile::AtomicFile(std::string path) : path_(std::move(path)) {
    static std::atomic<int> count{0};
    temporary_ = fmt::format("{}.tmp-{}-{}", path_, ::getpid(), count++);
    descriptor_ = ::open(temporary_.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (descriptor_ < 0) write_failed(path_, errno);
}

AtomicFile::~AtomicFile() {
    if (descriptor_ >= 0) ::close(descriptor_);
    if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void AtomicFile::write(const void* data, size_t bytes) {
    if (bytes == 0) return;
    synced_ = false;
    size_ += bytes;
    const auto* from = static_cast<const char*>(data);
    if (buffer_.size() + bytes > kBufferSize) flush();
    if (bytes >= kBufferSize) return write_all(descriptor_, path_, from, bytes);
    buffer_.insert(buffer_.end(), from, from + bytes);
}

void AtomicFile::flush() {
    write_all(descriptor_, path_, buffer_.data(), buffer_.size());
    buffer_.clear();
}

void AtomicFile::truncate(uint64_t bytes) {
    flush();
    LEVIN_CHECK(bytes <= size_, "file " + path_, "truncate to {} bytes, but only {} were written", bytes,
                size_);
    synced_ = false;
    const auto end = static_cast<off_t>(bytes);
    if (::ftruncate(descriptor_, end) != 0 || ::lseek(descriptor_, end, SEEK_SET) < 0)
        write_failed(path_, errno);
    size_ = bytes;
}

void AtomicFile::sync() {
    if (synced_) return;
    flush();
    if (::fsync(descriptor_) != 0) write_failed(path_, errno);
    synced_ = true;
}

void AtomicFile::commit() {
    sync();
    // Some file systems report a failed write only when the file is closed.
    if (::close(std::exchange(descriptor_, -1)) != 0) write_failed(path_, errno);
    if (::rename(temporary_.c_str(), path_.c_str()) != 0) write_failed(path_, errno);
    temporary_.clear();
    const auto folder = std::filesystem::path(path_).parent_path();
    sync_folder(folder.empty() ? "." : folder.string());
}

void write_text_file(const std::string& path, std::string_view text) {
    AtomicFile file(path);
    file.write(text);
    file.commit();
}

InputFile::InputFile(std::string path) : path_(std::move(path)) {
    descriptor_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
    LEVIN_REQUIRE(descriptor_ >= 0, "file " + path_, "cannot be opened: {}", std::strerror(errno));
    struct stat status;
    const bool known = ::fstat(descriptor_, &status) == 0;
    if (!known || !S_ISREG(status.st_mode)) {
        ::close(descriptor_);
        fail(Fault::input, "file " + path_, "is no regular file; give the path of a file");
    }
    size_ = static_cast<uint64_t>(status.st_size);
}

InputFile::~InputFile() {
    if (descriptor_ >= 0) ::close(descriptor_);
}

InputFile::InputFile(InputFile&& other) noexcept
    : path_(std::move(other.path_)), descriptor_(std::exchange(other.descriptor_, -1)), size_(other.size_) {}

void InputFile::read(uint64_t offset, void* destination, size_t bytes) const {
    LEVIN_REQUIRE(offset <= size_ && bytes <= size_ - offset, "file " + path_,
                  "ends at byte {}, but bytes {} to {} are needed: it is truncated", size_, offset,
                  offset + bytes);
    char* to = static_cast<char*>(destination);
    while (bytes > 0) {
        const ssize_t done =
            ::pread(descriptor_, to, std::min(bytes, kLargestCall), static_cast<off_t>(offset));
        if (done < 0 && errno == EINTR) continue;
        LEVIN_REQUIRE(done > 0, "file " + path_, "cannot be read at byte {}: {}", offset,
                      done < 0 ? std::strerror(errno) : "it became shorter while it was read");
        to += done;
        offset += static_cast<uint64_t>(done);
        bytes -= static_cast<size_t>(done);
    }
}

std::string read_text_file(const std::string& path, uint64_t limit) {
    const InputFile file(path);
    LEVIN_REQUIRE(file.size() <= limit, "file " + path, "has {} bytes; at most {} are sensible for its kind",
                  file.size(), limit);
    std::string text(file.size(), '\0');
    file.read(0, text.data(), text.size());
    return text;
}

FolderLock::FolderLock(const std::string& folder, double seconds)
    : descriptor_(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
    if (descriptor_ < 0) return;
    const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
    const auto taken = [&] { return ::flock(descriptor_, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK; };
    while (!(held_ = taken()) && std::chrono::steady_clock::now() < end)
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
}

FolderLock::~FolderLock() {
    if (descriptor_ >= 0) ::close(descriptor_);
}

void sync_folder(const std::string& path) {
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (descriptor < 0) return;
    const int result = ::fsync(descriptor);
    const int error = errno;
    ::close(descriptor);
    // EINVAL, ENOTSUP: a file system without this notion; EROFS and EBADF cannot follow a successful write.
    if (result != 0 && error != EINVAL && error != ENOTSUP) write_failed(path, error);
}

}  // namespace levin
