// Functions of the driver, asked for at run time, so that the program links and starts without one.
#pragma once

namespace levin::kernels::cuda {

// The address of `name` as CUDA 12.0 declares it. Throws Error(internal) where the driver has none.
void* driver_function(const char* name);

}  // namespace levin::kernels::cuda
