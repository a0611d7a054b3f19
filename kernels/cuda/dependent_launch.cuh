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

struct LaunchShape {
    dim3 grid;
    int threads;
    size_t shared;         // dynamic, in bytes
    unsigned cluster = 1;  // blocks of a cluster; more than 1 on Hopper only
    bool early = false;    // may start while the kernel in front of it runs; on Hopper only
};

// A shape as the driver takes it.
class LaunchConfig {
public:
    LaunchConfig(cudaStream_t stream, const LaunchShape& shape) {
        config_.gridDim = shape.grid;
        config_.blockDim = dim3(static_cast<unsigned>(shape.threads));
        config_.dynamicSmemBytes = shape.shared;
        config_.stream = stream;
        config_.attrs = attributes_;
        if (shape.early) {
            cudaLaunchAttribute& attribute = attributes_[config_.numAttrs++];
            attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
            attribute.val.programmaticStreamSerializationAllowed = 1;
        }
        if (shape.cluster > 1) {
            cudaLaunchAttribute& attribute = attributes_[config_.numAttrs++];
            attribute.id = cudaLaunchAttributeClusterDimension;
            attribute.val.clusterDim = {.x = shape.cluster, .y = 1, .z = 1};
        }
    }
    LaunchConfig(const LaunchConfig&) = delete;
    LaunchConfig& operator=(const LaunchConfig&) = delete;
    const cudaLaunchConfig_t* get() const { return &config_; }

private:
    cudaLaunchAttribute attributes_[2]{};
    cudaLaunchConfig_t config_{};
};

template <class... Parameters, class... Arguments>
void launch_dependent(cudaStream_t stream, const LaunchShape& shape, void (*kernel)(Parameters...),
                      const Arguments&... arguments) {
    LEVIN_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                          static_cast<int>(shape.shared)));
    const LaunchConfig config(stream, shape);
    LEVIN_CUDA_CHECK(cudaLaunchKernelEx(config.get(), kernel, static_cast<Parameters>(arguments)...));
}

}  // namespace levin::kernels::cuda
