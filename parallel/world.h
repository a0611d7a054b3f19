// The ranks of this job: start-up, place on the host, orderly and disorderly end.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "parallel/routed.h"
#include "parallel/watchdog/watchdog.h"

namespace levin {

struct RankPlace {
    std::string host;
    int local_rank = 0;  // among the ranks of the same host
    int local_size = 1;
    int cores = 1;    // that the rank may use, alone or with others
    int threads = 1;  // its share of them
};

// One per process, made at the start of main (by run_ranks) on the thread that will communicate. MPI is
// initialised only when mpirun started the process; otherwise this is a world of one rank without MPI.
//
// Open MPI binds the ranks of a small job to one core each unless told otherwise, which would leave the other
// cores idle: such a default binding is undone here, one that was asked for (--bind-to) is kept. OpenMP gets
// place().threads unless OMP_NUM_THREADS says otherwise.
class World {
public:
    World();
    ~World();
    World(const World&) = delete;
    World& operator=(const World&) = delete;
    // The one that lives; an Error(internal) before main made it.
    static World& current();

    int rank() const { return all_->rank(); }
    int size() const { return all_->size(); }
    bool is_root() const { return rank() == 0; }
    bool uses_mpi() const { return uses_mpi_; }
    std::string mpi_version() const;  // also without mpirun

    Communicator& all() const { return *all_; }
    const std::shared_ptr<Communicator>& communicator() const { return all_; }
    // The ranks of this host.
    Communicator& host() const { return *host_; }

    // Where this rank computes: the CPU, or its own GPU, which is the one with the rank's number on its host
    // (or the only one it sees, as Slurm can arrange). The first call for GPUs is collective and connects
    // them. Throws Error(input) where there are too few GPUs or no NCCL for several ranks.
    Device device(DeviceType type);

    const RankPlace& place() const { return place_; }
    // Everybody's, by rank. Collective.
    std::vector<RankPlace> places() const;

    // Null for a rank alone.
    Watchdog* watchdog() const { return watchdog_.get(); }

    // Waits for all ranks to come here, then ends MPI. No communication afterwards.
    void finish();

private:
    void assign_gpu();

    std::shared_ptr<Communicator> all_, host_;
    std::shared_ptr<RoutedCommunicator> routed_;  // all_, where there are several ranks
    std::optional<Device> gpu_;
    std::unique_ptr<Watchdog> watchdog_;
    RankPlace place_;
    bool uses_mpi_ = false, finished_ = false;
};

// The body of main(): makes the world, runs `body` and returns its exit status. An Error is printed with the
// rank it happened on and becomes its exit status; any other exception becomes 1. A rank that ends with a
// status other than 0 takes the whole job down with it, within seconds; of several that fail the first is
// named (watchdog.h).
int run_ranks(const std::function<int(World&)>& body);

}  // namespace levin
