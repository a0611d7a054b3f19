#include "kernels/stream_graph.h"

#include <cuda_runtime_api.h>

#include "kernels/cuda/check.h"

namespace levin::kernels::cuda {

void* record_graph(const Stream& stream, const std::function<void()>& work) {
    const cudaStream_t s = use(stream);
    // Relaxed: memory may be allocated meanwhile.
    LEVIN_CUDA_CHECK(cudaStreamBeginCapture(s, cudaStreamCaptureModeRelaxed));
    cudaGraph_t graph = nullptr;
    try {
        work();
    } catch (...) {
        cudaStreamEndCapture(s, &graph);  // ends the capture, whatever it says
        if (graph) cudaGraphDestroy(graph);
        cudaGetLastError();
        throw;
    }
    const cudaError_t ended = cudaStreamEndCapture(s, &graph);
    cudaGraphExec_t executable = nullptr;
    const cudaError_t made = ended == cudaSuccess ? cudaGraphInstantiate(&executable, graph, 0) : cudaSuccess;
    if (graph) cudaGraphDestroy(graph);
    cudaGetLastError();  // reported here; the next launch shall not see it
    LEVIN_CUDA_CHECK(ended);
    LEVIN_CUDA_CHECK(made);
    return executable;
}
void launch_graph(const Stream& stream, void* graph) {
    LEVIN_CUDA_CHECK(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), use(stream)));
}
void destroy_graph(void* graph) noexcept { cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph)); }

}  // namespace levin::kernels::cuda
