// The manifest of a native checkpoint: reading it, and checking the files it lists. For the files of this
// room.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "checkpoint/proto/manifest.pb.h"

namespace levin {

inline constexpr const char* kManifestFile = "manifest";
inline constexpr uint32_t kManifestVersion = 1;

// Throws Error(input) when it is missing, garbled, of a changed byte, or of a later format.
proto::Manifest read_manifest(const std::string& checkpoint);
void write_manifest(const std::string& checkpoint, const proto::Manifest& manifest);

// Every listed file must be there with its size and, with `hashes`, its bytes. Throws Error(input) naming the
// file.
void check_files(const std::string& checkpoint, const proto::Manifest& manifest, bool hashes);

// (step, path) of every step_* folder, ascending; none when the folder is missing.
std::vector<std::pair<int64_t, std::string>> checkpoint_folders(const std::string& folder);

}  // namespace levin
