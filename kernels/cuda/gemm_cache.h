// A small text file that remembers which algorithm was fastest for a product, so that later runs need not
// time again and compute with the same algorithms, hence the same bits. Host code without any CUDA call.
//
// One file per GPU name and cuBLAS version; a line per product: its key, the algorithm's fingerprint, a
// checksum. The file only ever selects among the algorithms that cuBLASLt proposes anyway, so a wrong line
// can cost speed, never a result. A file that is damaged, of another GPU or of another version is ignored.
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace levin::kernels::cuda {

// Where the file is: $LEVIN_GEMM_CACHE (a folder; "off": nowhere), $XDG_CACHE_HOME/levin or ~/.cache/levin.
// Empty: nowhere.
std::string gemm_cache_path(const std::string& gpu, const std::string& version);

// False when $LEVIN_GEMM_TUNING is "off" or "0": take cuBLASLt's first proposal, which depends on nothing but
// the shape and the version.
bool gemm_tuning_enabled();

class GemmCache {
public:
    // Reads `path` if it is there. An empty path remembers nothing beyond the process.
    GemmCache(std::string path, std::string gpu, std::string version);

    // The fingerprint stored for this product, or 0.
    uint64_t find(const std::string& key) const;
    // Remembers it and writes the file anew (a temporary file, then a rename: readers see the old or the new
    // one), with what other processes added meanwhile. A folder that cannot be written is no error.
    void store(const std::string& key, uint64_t fingerprint);
    size_t size() const { return choices_.size(); }

private:
    std::map<std::string, uint64_t> read() const;
    std::string header() const;

    std::string path_, gpu_, version_;
    std::map<std::string, uint64_t> choices_;
};

// FNV-1a of bytes: fingerprints and checksums. Never 0.
uint64_t fingerprint_of(const void* data, size_t bytes);

}  // namespace levin::kernels::cuda
