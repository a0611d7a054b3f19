// Starting and ending MPI itself.
#pragma once

#include <memory>
#include <string>

#include "parallel/communicator.h"

namespace levin::mpi {

// True in a process that mpirun (Open MPI, or any launcher that speaks PMI) started.
bool started_by_mpirun();
// Open MPI pinned this process to a core or socket of its own choice; nobody asked it to.
bool bound_by_default();

// MPI_Init_thread with MPI_THREAD_FUNNELED: the calling thread is the only one that will communicate.
void initialize();
void finalize();
// "Open MPI v4.1.4"
std::string library_version();

// The ranks on this host; collective over the job.
std::shared_ptr<Communicator> make_host_communicator();

}  // namespace levin::mpi
