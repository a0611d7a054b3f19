// Collectives in two levels: inside each host, and between hosts only what a host has made one of.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "parallel/mpi/operation.h"

namespace levin::mpi {

// The ranks of a communicator on their hosts.
struct Hosts {
    std::vector<std::vector<int>> ranks;  // [host][place], both in the order of the ranks
    int host = 0, place = 0;              // of this rank
};

// By each rank's host. Null where two levels win nothing or do not go: one host, one rank on each, or not the
// same number on all.
std::shared_ptr<const Hosts> group_by_host(const std::vector<int>& host_of_rank, int rank);

// As reduce_in_rank_order, in the order of two levels: the ranks of each host, then the hosts. A host's sum
// is rounded to `dtype`.
void reduce_in_host_order(const Hosts& hosts, std::span<const void* const> parts, void* out, int64_t count,
                          DType dtype, ReduceOp op);

// Rank p of the communicator has the p-th part of `whole`. With `op` that part is first reduced over the
// ranks: what a host has for the ranks of one place goes to its own rank of that place, which sums it, and
// sends each host the sum for that host's rank. Into `part`, which may lie in `whole`. With `gather` the
// parts then go to all, over the network once a host. On the network: 1 / (ranks of a host) of what the flat
// collective sends.
std::shared_ptr<Operation> by_host(const Call& call, const Tensor& whole, const Tensor& part,
                                   std::optional<ReduceOp> op, bool gather);

}  // namespace levin::mpi
