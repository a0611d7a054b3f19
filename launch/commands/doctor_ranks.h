// What `levin doctor --ranks` looks at under mpirun: every rank, and every link between two of them.
#pragma once

#include <string>
#include <vector>

#include "launch/commands/doctor_checks.h"
#include "parallel/world.h"

namespace levin {

struct RankFacts {
    RankPlace place;
    std::string gpu;            // "NVIDIA H200 0000:1b:00.0", "-" for none
    std::string versions;       // of levin, MPI and NCCL
    double clock_ahead_ms = 0;  // of rank 0's, to within half a round trip
};
struct LinkFacts {
    int from = 0, to = 0;
    bool one_host = true;
    double latency_us = 0, gb_per_second = 0;  // one way
};
struct RanksReport {
    std::vector<RankFacts> ranks;
    std::vector<LinkFacts> links;
    std::vector<Finding> findings;
};

// Collective over the job; complete on rank 0. All pairs of up to 16 ranks are measured, of more those at
// distances 1, 2, 4, ..: seconds in all. `gpus`: links between GPUs, over NCCL, instead of MPI's.
RanksReport examine_ranks(World& world, bool gpus);

// A link that is much slower than the typical one of its kind (within a host, between hosts). Tested on its
// own.
std::vector<Finding> slow_links(const std::vector<LinkFacts>& links, const std::vector<RankFacts>& ranks);

}  // namespace levin
