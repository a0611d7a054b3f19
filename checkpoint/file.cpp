#include "checkpoint/file.h"

#include <xxhash.h>

#include <algorithm>
#include <vector>

namespace levin {

struct OutputFile::Hash {
    Hash() { LEVIN_CHECK(state && XXH64_reset(state.get(), 0) == XXH_OK, "file", "no memory for a hash"); }
    void update(const void* data, size_t bytes) { XXH64_update(state.get(), data, bytes); }
    uint64_t digest() const { return XXH64_digest(state.get()); }
    struct Free {
        void operator()(XXH64_state_t* held) const { XXH64_freeState(held); }
    };
    std::unique_ptr<XXH64_state_t, Free> state{XXH64_createState()};
};

OutputFile::OutputFile(std::string path) : file_(std::move(path)), hash_(std::make_unique<Hash>()) {}

OutputFile::~OutputFile() = default;

void OutputFile::write(const void* data, size_t bytes) {
    hash_->update(data, bytes);
    file_.write(data, bytes);
}

FileDigest OutputFile::finish() {
    file_.commit();
    return {file_.size(), hash_->digest()};
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
    AtomicFile to(destination);
    stream_file(from, [&](const char* data, size_t bytes) { to.write(data, bytes); });
    to.commit();
}

}  // namespace levin
