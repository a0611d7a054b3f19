// Files written so that a crash, a full disk or a killed process never leaves a half-written one under its
// final name, and files read with bounds.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/error.h"

namespace levin {

// A new file, under a temporary name beside `path` until commit(). Destroyed before that, it removes the
// temporary file. Every failure throws Error with the path and the system's reason: Error(input) where there
// is no such folder or it may not be written, Error(internal) for all else (full disk, quota).
class AtomicFile {
public:
    explicit AtomicFile(std::string path);
    ~AtomicFile();
    AtomicFile(const AtomicFile&) = delete;
    AtomicFile& operator=(const AtomicFile&) = delete;

    void write(const void* data, size_t bytes);
    void write(std::string_view text) { write(text.data(), text.size()); }
    // Forgets what was written beyond the first `bytes`.
    void truncate(uint64_t bytes);
    uint64_t size() const { return size_; }
    const std::string& path() const { return path_; }
    // Hands what was written to the kernel, so that another reader of temporary_path() sees it.
    void flush();
    const std::string& temporary_path() const { return temporary_; }
    // Flushes to the disk (fsync); the file keeps its temporary name.
    void sync();
    // sync(), then renames to the final name and makes that durable.
    void commit();

private:
    std::string path_, temporary_;
    int descriptor_ = -1;
    uint64_t size_ = 0;
    std::vector<char> buffer_;
    bool synced_ = false;
};

// AtomicFile with these bytes.
void write_text_file(const std::string& path, std::string_view text);

// Reads at any offset. A file that is missing or no regular one, and a read that fails or comes up short,
// throw Error(input).
class InputFile {
public:
    explicit InputFile(std::string path);
    ~InputFile();
    InputFile(InputFile&& other) noexcept;
    InputFile(const InputFile&) = delete;
    InputFile& operator=(const InputFile&) = delete;

    uint64_t size() const { return size_; }
    const std::string& path() const { return path_; }
    int descriptor() const { return descriptor_; }
    void read(uint64_t offset, void* destination, size_t bytes) const;

private:
    std::string path_;
    int descriptor_ = -1;
    uint64_t size_ = 0;
};

// The whole file. Throws Error(input) when it is missing or larger than `limit`.
std::string read_text_file(const std::string& path, uint64_t limit = 256u << 20);

// Keeps other processes out of a folder, as far as they ask: one at a time holds its lock. The kernel gives
// it back when the process ends, however it ends, and no file tells of it. Where a file system has no such
// locks (NFS) everybody holds it.
class FolderLock {
public:
    // Waits up to `seconds` for another holder to end.
    FolderLock(const std::string& folder, double seconds);
    ~FolderLock();
    FolderLock(const FolderLock&) = delete;
    FolderLock& operator=(const FolderLock&) = delete;
    bool held() const { return held_; }

private:
    int descriptor_ = -1;
    bool held_ = true;
};

// Makes the names inside a folder durable. File systems that know no such thing are let be.
void sync_folder(const std::string& path);

}  // namespace levin
