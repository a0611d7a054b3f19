#include "parallel/mpi/runtime.h"

#include <sys/uio.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>

#include "parallel/mpi/mpi_communicator.h"
#include "parallel/mpi/operation.h"

namespace levin::mpi {

namespace {

// Containers often forbid reading another process's memory, which Open MPI's shared-memory transport finds
// out only when a message fails. The copy through shared memory always works.
void avoid_forbidden_copies() {
    char from = 1, to = 0;
    const iovec local{&to, 1}, remote{&from, 1};
    if (process_vm_readv(getpid(), &local, 1, &remote, 1, 0) != 1)
        setenv("OMPI_MCA_btl_vader_single_copy_mechanism", "none", 0);
}

}  // namespace

bool started_by_mpirun() {
    for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMI_RANK", "PMIX_RANK"})
        if (std::getenv(name)) return true;
    return false;
}

bool bound_by_default() {
    const char* bound = std::getenv("OMPI_MCA_orte_bound_at_launch");
    return bound && std::string(bound) == "1" && !std::getenv("OMPI_MCA_hwloc_base_binding_policy");
}

void initialize() {
    avoid_forbidden_copies();
    // Open MPI writes to the connection of a rank that is gone: that must come back as an error, not end this
    // rank without a word.
    std::signal(SIGPIPE, SIG_IGN);
    int provided = 0;
    LEVIN_MPI(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided));
    if (provided < MPI_THREAD_FUNNELED)
        fail(Fault::communication, "mpi",
             "this MPI ({}) supports no threads beside the communicating one (level {}); use a build of MPI "
             "with "
             "thread support",
             library_version(), provided);
    LEVIN_MPI(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN));
}

void finalize() {
    drop_all();
    LEVIN_MPI(MPI_Finalize());
}

std::string library_version() {
    char text[MPI_MAX_LIBRARY_VERSION_STRING];
    int length = 0;
    if (MPI_Get_library_version(text, &length) != MPI_SUCCESS) return "MPI of unknown version";
    const std::string all(text, static_cast<size_t>(length));
    return all.substr(0, all.find_first_of(",\n"));
}

}  // namespace levin::mpi
