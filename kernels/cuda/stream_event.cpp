#include "kernels/stream_event.h"

#include <cuda_runtime_api.h>

#include "kernels/cuda/check.h"

namespace levin::kernels::cuda {

void* create_event(const Device& device) {
    LEVIN_CUDA_CHECK(cudaSetDevice(device.index));
    cudaEvent_t event = nullptr;
    LEVIN_CUDA_CHECK(cudaEventCreate(&event));
    return event;
}
void destroy_event(void* event) noexcept { cudaEventDestroy(static_cast<cudaEvent_t>(event)); }
void record_event(const Stream& stream, void* event) {
    LEVIN_CUDA_CHECK(cudaEventRecord(static_cast<cudaEvent_t>(event), use(stream)));
}
bool event_done(void* event) {
    const cudaError_t status = cudaEventQuery(static_cast<cudaEvent_t>(event));
    if (status == cudaErrorNotReady) {
        cudaGetLastError();  // an answer, not an error
        return false;
    }
    LEVIN_CUDA_CHECK(status);
    return true;
}
void wait_event(void* event) { LEVIN_CUDA_CHECK(cudaEventSynchronize(static_cast<cudaEvent_t>(event))); }
double event_ms_since(void* event, void* earlier) {
    float ms = 0;
    wait_event(event);
    LEVIN_CUDA_CHECK(
        cudaEventElapsedTime(&ms, static_cast<cudaEvent_t>(earlier), static_cast<cudaEvent_t>(event)));
    return ms;
}

void* allocate_pinned(const Device& device, size_t bytes) {
    LEVIN_CUDA_CHECK(cudaSetDevice(device.index));
    void* pointer = nullptr;
    LEVIN_CUDA_CHECK(cudaMallocHost(&pointer, bytes == 0 ? 1 : bytes));
    return pointer;
}
void release_pinned(void* pointer) noexcept { cudaFreeHost(pointer); }

void copy_bytes_async(const Stream& stream, void* to, const void* from, size_t bytes) {
    LEVIN_CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, use(stream)));
}

}  // namespace levin::kernels::cuda
