// The folder of a run: whose it is, and what lies in it.
#pragma once

#include <string>

#include "data/dataset.h"
#include "trainer/config.h"

namespace levin {

// The strings a Dataset takes.
std::vector<std::string> dataset_specs(const std::vector<DataSource>& sources);

// Claims config.run.folder for this run, or finds that it is this run's already. A run is known by its model,
// data, seed, sequence length and global batch, kept in run.json; another one's folder is refused with
// Error(input) that names what differs. Then writes config.yaml (the resolved configuration) and the shard's
// tokenizer (tokenizer/). Rank 0 only.
void claim_run_folder(const Config& config, const Dataset& data);

}  // namespace levin
