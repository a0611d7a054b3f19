// The communicator of a process alone: every collective is the identity. Needs no MPI.
#pragma once

#include "parallel/communicator.h"

namespace levin {

// A message sent to itself waits, copied, for its recv().
std::shared_ptr<Communicator> make_self_communicator(const std::string& name);

}  // namespace levin
