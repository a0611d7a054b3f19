// Overlap of kernels that follow each other on a stream (programmatic dependent launch, Hopper): once all
// blocks of a kernel have called let_next_kernel_start(), blocks of the next may start where there is room.
// What earlier kernels of the stream write is there after wait_for_previous_kernels(). Elsewhere, and in
// kernels launched plainly, both do nothing.
#pragma once

#include "kernels/cuda/check.h"

namespace levin::kernels::cuda {

__device__ inline void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ inline void wait_for_previous_kernels() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Launches `kernel`; early: it may start while the kernel in front of it runs.
template <class... Parameters, class... Arguments>
void launch_dependent(cudaStream_t stream, bool early, void (*kernel)(Parameters...), dim3 grid, int threads,
                      size_t shared, const Arguments&... arguments) {
    LEVIN_CUDA_CHECK(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = early ? 1 : 0;
    LEVIN_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}

}  // namespace levin::kernels::cuda
