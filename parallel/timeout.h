// How long a rank waits for the others before it gives up and takes the job down.
#pragma once

namespace levin {

// Seconds; LEVIN_COMMUNICATION_TIMEOUT in the environment, or 1800: other ranks wait while rank 0 saves.
double communication_timeout();

}  // namespace levin
