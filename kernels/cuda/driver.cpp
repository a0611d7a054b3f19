#include "kernels/cuda/driver.h"

#include <cuda_runtime_api.h>

#include "kernels/base/error.h"
#include "kernels/cuda/check.h"

namespace levin::kernels::cuda {

void* driver_function(const char* name) {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found{};
    LEVIN_CUDA_CHECK(cudaGetDriverEntryPointByVersion(name, &function, 12000, cudaEnableDefault, &found));
    LEVIN_CHECK(found == cudaDriverEntryPointSuccess && function, "cuda",
                "the driver has no {} (status {}); it must be one for CUDA 12 or newer", name,
                static_cast<int>(found));
    return function;
}

}  // namespace levin::kernels::cuda
