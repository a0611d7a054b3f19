#include "kernels/cuda/gemm_cache.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cctype>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <system_error>

namespace levin::kernels::cuda {

namespace {

namespace fs = std::filesystem;

// A run has a few dozen products; a file beyond this is not ours.
constexpr size_t kMaxBytes = size_t{4} << 20, kMaxChoices = 20000;

std::string environment(const char* name) {
    const char* value = std::getenv(name);
    return value ? value : "";
}

// Letters, digits and dots of a GPU's name, for a file name.
std::string plain(const std::string& text) {
    std::string result;
    for (const unsigned char c : text) result += std::isalnum(c) || c == '.' ? static_cast<char>(c) : '-';
    return result;
}

// "key | fingerprint | checksum of both", the numbers as 16 hexadecimal digits.
std::string line_of(const std::string& key, uint64_t fingerprint) {
    const std::string text = fmt::format("{} | {:016x}", key, fingerprint);
    return fmt::format("{} | {:016x}", text, fingerprint_of(text.data(), text.size()));
}

bool parse(const std::string& line, std::string* key, uint64_t* fingerprint) {
    const size_t bar = line.find(" | ");
    if (bar == std::string::npos || bar == 0) return false;
    const std::string digits = line.substr(bar + 3, 16);
    if (digits.size() != 16 || digits.find_first_not_of("0123456789abcdef") != std::string::npos)
        return false;
    *key = line.substr(0, bar);
    *fingerprint = std::strtoull(digits.c_str(), nullptr, 16);
    return *fingerprint != 0 && line == line_of(*key, *fingerprint);
}

}  // namespace

uint64_t fingerprint_of(const void* data, size_t bytes) {
    uint64_t hash = 14695981039346656037ull;
    for (size_t i = 0; i < bytes; ++i)
        hash = (hash ^ static_cast<const unsigned char*>(data)[i]) * 1099511628211ull;
    return hash == 0 ? 1 : hash;
}

std::string gemm_cache_path(const std::string& gpu, const std::string& version) {
    fs::path folder = environment("LEVIN_GEMM_CACHE");
    if (folder == "off") return {};
    if (folder.empty() && !environment("XDG_CACHE_HOME").empty())
        folder = fs::path(environment("XDG_CACHE_HOME")) / "levin";
    if (folder.empty() && !environment("HOME").empty())
        folder = fs::path(environment("HOME")) / ".cache" / "levin";
    if (folder.empty()) return {};
    return folder / fmt::format("gemm-{}-cublas-{}.txt", plain(gpu), plain(version));
}

bool gemm_tuning_enabled() {
    const std::string value = environment("LEVIN_GEMM_TUNING");
    return value != "off" && value != "0";
}

GemmCache::GemmCache(std::string path, std::string gpu, std::string version)
    : path_(std::move(path)), gpu_(std::move(gpu)), version_(std::move(version)), choices_(read()) {}

// The number changes with the way of timing: choices made in another way are not taken over.
std::string GemmCache::header() const {
    return fmt::format("levin gemm choices 2 | {} | cuBLAS {}", gpu_, version_);
}

std::map<std::string, uint64_t> GemmCache::read() const {
    std::map<std::string, uint64_t> result;
    std::error_code error;
    if (path_.empty() || !fs::is_regular_file(path_, error) || fs::file_size(path_, error) > kMaxBytes ||
        error)
        return result;
    std::ifstream file(path_);
    std::string line, key;
    if (!std::getline(file, line) || line != header()) return result;
    while (result.size() < kMaxChoices && std::getline(file, line)) {
        uint64_t fingerprint = 0;
        if (!parse(line, &key, &fingerprint)) return {};  // damaged: none of it is trusted
        result[key] = fingerprint;
    }
    return result;
}

uint64_t GemmCache::find(const std::string& key) const {
    const auto found = choices_.find(key);
    return found == choices_.end() ? 0 : found->second;
}

void GemmCache::store(const std::string& key, uint64_t fingerprint) {
    choices_[key] = fingerprint;
    if (path_.empty()) return;
    std::map<std::string, uint64_t> all = read();
    for (const auto& [k, v] : choices_) all[k] = v;
    const std::string temporary = fmt::format("{}.{}", path_, getpid());
    std::error_code error;
    fs::create_directories(fs::path(path_).parent_path(), error);
    {
        std::ofstream file(temporary, std::ios::trunc);
        file << header() << '\n';
        for (const auto& [k, v] : all) file << line_of(k, v) << '\n';
        if (!file.flush()) {
            fs::remove(temporary, error);
            return;
        }
    }
    fs::rename(temporary, path_, error);
    if (error) fs::remove(temporary, error);
}

}  // namespace levin::kernels::cuda
