#include "checkpoint/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <vector>

#include "kernels/base/error.h"

namespace levin {

namespace {

constexpr size_t kLargestCall = size_t{1} << 30;  // Linux moves at most 2 GiB in one call

std::string folder_of(const std::string& path) {
    const auto parent = std::filesystem::path(path).parent_path();
    return parent.empty() ? "." : parent.string();
}

[[noreturn]] void write_failed(const std::string& path, int error) {
    fail(Fault::internal, "file " + path, "cannot be written: {}{}", std::strerror(error),
         error == ENOSPC || error == EDQUOT ? "; make room on that disk" : "");
}

}  // namespace

struct OutputFile::Hash {
    Hash() { LEVIN_CHECK(state && XXH64_reset(state.get(), 0) == XXH_OK, "file", "no memory for a hash"); }
    void update(const void* data, size_t bytes) { XXH64_update(state.get(), data, bytes); }
    uint64_t digest() const { return XXH64_digest(state.get()); }
    struct Free {
        void operator()(XXH64_state_t* held) const { XXH64_freeState(held); }
    };
    std::unique_ptr<XXH64_state_t, Free> state{XXH64_createState()};
};

OutputFile::OutputFile(std::string path) : path_(std::move(path)), hash_(std::make_unique<Hash>()) {
    const std::filesystem::path target(path_);
    temporary_ =
        (std::filesystem::path(folder_of(path_)) / ("." + target.filename().string() + ".part")).string();
    descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (descriptor_ < 0) write_failed(path_, errno);
}

OutputFile::~OutputFile() {
    if (descriptor_ < 0) return;
    ::close(descriptor_);
    ::unlink(temporary_.c_str());
}

void OutputFile::write(const void* data, size_t bytes) {
    hash_->update(data, bytes);
    written_ += bytes;
    const char* from = static_cast<const char*>(data);
    while (bytes > 0) {
        const ssize_t done = ::write(descriptor_, from, std::min(bytes, kLargestCall));
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0) write_failed(path_, done < 0 ? errno : EIO);
        from += done;
        bytes -= static_cast<size_t>(done);
    }
}

FileDigest OutputFile::finish() {
    if (::fsync(descriptor_) != 0) write_failed(path_, errno);
    // Some file systems report a failed write only here.
    const int closed = ::close(descriptor_);
    const int error = errno;
    descriptor_ = -1;
    if (closed != 0 || ::rename(temporary_.c_str(), path_.c_str()) != 0) {
        const int reason = closed != 0 ? error : errno;
        ::unlink(temporary_.c_str());
        write_failed(path_, reason);
    }
    sync_folder(folder_of(path_));
    return {written_, hash_->digest()};
}

InputFile::InputFile(std::string path) : path_(std::move(path)) {
    descriptor_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
    LEVIN_REQUIRE(descriptor_ >= 0, "file " + path_, "cannot be opened: {}", std::strerror(errno));
    struct stat status;
    const bool known = ::fstat(descriptor_, &status) == 0;
    if (!known || !S_ISREG(status.st_mode)) {
        ::close(descriptor_);
        fail(Fault::input, "file " + path_, "is no regular file");
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
    LEVIN_REQUIRE(file.size() <= limit, "file " + path, "has {} bytes; at most {} are expected", file.size(),
                  limit);
    std::string text(file.size(), '\0');
    file.read(0, text.data(), text.size());
    return text;
}

FileDigest write_text_file(const std::string& path, std::string_view text) {
    OutputFile file(path);
    file.write(text);
    return file.finish();
}

namespace {

// Hands the file's bytes to `use` piece by piece.
template <class Use>
void stream_file(const InputFile& file, const Use& use) {
    std::vector<char> buffer(std::min<uint64_t>(file.size(), 8u << 20));
    for (uint64_t at = 0; at < file.size();) {
        const size_t bytes = std::min<uint64_t>(buffer.size(), file.size() - at);
        file.read(at, buffer.data(), bytes);
        use(buffer.data(), bytes);
        at += bytes;
    }
}

}  // namespace

FileDigest digest_of_file(const std::string& path) {
    const InputFile file(path);
    OutputFile::Hash hash;
    stream_file(file, [&](const char* data, size_t bytes) { hash.update(data, bytes); });
    return {file.size(), hash.digest()};
}

FileDigest digest_of_bytes(std::string_view bytes) {
    return {bytes.size(), XXH64(bytes.data(), bytes.size(), 0)};
}

void copy_file_durably(const std::string& source, const std::string& destination) {
    const InputFile from(source);
    OutputFile to(destination);
    stream_file(from, [&](const char* data, size_t bytes) { to.write(data, bytes); });
    to.finish();
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
