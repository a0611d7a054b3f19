// The folder of a run: whose it is, and what lies in it.
#pragma once

#include <memory>
#include <string>

#include "data/dataset.h"
#include "kernels/base/file.h"
#include "trainer/config.h"

namespace levin {

// The strings a Dataset takes. Where one source has a weight, those without have 1; where none has, none gets
// one.
std::vector<std::string> dataset_specs(const std::vector<DataSource>& sources);

// Claims config.run.folder for this run, or finds that it is this run's already. A run is known by its model,
// data, seed, sequence length and global batch, kept in run.json; another one's folder is refused with
// Error(input) that names what differs; so is a folder that another process trains in, one that cannot be
// written, and one with checkpoints where checkpoint.resume=none asks for a start at step 0 (keeping the
// newest would throw the new ones away). Then writes config.yaml (the resolved configuration) and the shard's
// tokenizer (tokenizer/). Rank 0 only; the folder is this process's as long as the lock lives.
std::unique_ptr<FolderLock> claim_run_folder(const Config& config, const Dataset& data);

}  // namespace levin
