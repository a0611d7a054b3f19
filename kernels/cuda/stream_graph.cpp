#include "kernels/stream_graph.h"

#include <cuda_runtime_api.h>

#include "kernels/cuda/check.h"

namespace levin::kernels::cuda {

void* record_graph(const Stream& stream, const std::function<void()>& work) {
    const cudaStream_t s = use(stream);
    LEVIN_CUDA_CHECK(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
    cudaGraph_t graph = nullptr;
    try {
        work();
    } catch (...) {
        cudaStreamEndCapture(s, &graph);  // ends the capture, whatever it says
        if (graph) cudaGraphDestroy(graph);
        cudaGetLastError();
        throw;
    }
    LEVIN_CUDA_CHECK(cudaStreamEndCapture(s, &graph));
    cudaGraphExec_t executable = nullptr;
    const cudaError_t error = cudaGraphInstantiate(&executable, graph, 0);
    cudaGraphDestroy(graph);
    LEVIN_CUDA_CHECK(error);
    return executable;
}
void launch_graph(const Stream& stream, void* graph) {
    LEVIN_CUDA_CHECK(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), use(stream)));
}
void destroy_graph(void* graph) noexcept { cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph)); }

}  // namespace levin::kernels::cuda
