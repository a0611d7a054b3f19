// The communicator over MPI, for CPU tensors.
#pragma once

#include "parallel/communicator.h"

namespace levin::mpi {

// All ranks of the job. MPI must be initialised; the calling thread becomes the only one that may
// communicate.
std::shared_ptr<Communicator> make_world_communicator();

}  // namespace levin::mpi
