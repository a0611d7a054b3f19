#include "checkpoint/manifest.h"

#include <filesystem>
#include <set>

#include "checkpoint/file.h"
#include "kernels/base/error.h"

namespace levin {

namespace fs = std::filesystem;

proto::Manifest read_manifest(const std::string& checkpoint) {
    const std::string path = (fs::path(checkpoint) / kManifestFile).string(),
                      where = "checkpoint " + checkpoint;
    std::error_code ignored;
    LEVIN_REQUIRE(fs::is_directory(checkpoint, ignored), where, "is no folder");
    LEVIN_REQUIRE(fs::exists(path, ignored), where,
                  "has no file '{}': not a checkpoint, or an unfinished one", kManifestFile);
    proto::ManifestFile file;
    LEVIN_REQUIRE(file.ParseFromString(read_text_file(path)), where, "its manifest is garbled or truncated");
    LEVIN_REQUIRE(
        digest_of_bytes(file.manifest()).xxh64 == file.xxh64(), where,
        "the bytes of its manifest are not those that were written (hash {:016x}, expected {:016x})",
        digest_of_bytes(file.manifest()).xxh64, file.xxh64());
    proto::Manifest manifest;
    LEVIN_REQUIRE(manifest.ParseFromString(file.manifest()), where, "its manifest cannot be parsed");
    LEVIN_REQUIRE(
        manifest.format_version() == kManifestVersion, where,
        "has format version {}; this levin reads version {}: use the levin that wrote it, or a newer one",
        manifest.format_version(), kManifestVersion);
    std::set<std::string> names;
    for (const auto& entry : manifest.files())
        LEVIN_REQUIRE(fs::path(entry.name()).filename() == entry.name() &&
                          entry.name().ends_with(".safetensors") && names.insert(entry.name()).second,
                      where, "its manifest lists the file '{}', which cannot be one of its own",
                      entry.name());
    return manifest;
}

void write_manifest(const std::string& checkpoint, const proto::Manifest& manifest) {
    proto::ManifestFile file;
    LEVIN_CHECK(manifest.SerializeToString(file.mutable_manifest()), "checkpoint",
                "the manifest is too large");
    file.set_xxh64(digest_of_bytes(file.manifest()).xxh64);
    write_text_file((fs::path(checkpoint) / kManifestFile).string(), file.SerializeAsString());
}

void check_files(const std::string& checkpoint, const proto::Manifest& manifest, bool hashes) {
    const std::string where = "checkpoint " + checkpoint;
    for (const auto& entry : manifest.files()) {
        const fs::path path = fs::path(checkpoint) / entry.name();
        std::error_code error;
        const uint64_t bytes = fs::file_size(path, error);
        LEVIN_REQUIRE(!error, where, "its file {} cannot be read: {}", entry.name(), error.message());
        LEVIN_REQUIRE(bytes == entry.bytes(), where, "its file {} has {} bytes instead of {}", entry.name(),
                      bytes, entry.bytes());
    }
    if (!hashes) return;
    for (const auto& entry : manifest.files()) {
        const FileDigest digest = digest_of_file((fs::path(checkpoint) / entry.name()).string());
        LEVIN_REQUIRE(
            digest == (FileDigest{entry.bytes(), entry.xxh64()}), where,
            "the bytes of its file {} are not those that were written (hash {:016x}, expected {:016x})",
            entry.name(), digest.xxh64, entry.xxh64());
    }
}

}  // namespace levin
