// A sequence of kernels recorded once and launched again with one call (CUDA graphs).
#pragma once

#include <functional>

#include "kernels/base/stream.h"

namespace levin::kernels {

// On the CPU, which has no queue, it keeps the function and calls it.
class StreamGraph {
public:
    StreamGraph() = default;
    ~StreamGraph();
    StreamGraph(const StreamGraph&) = delete;
    StreamGraph& operator=(const StreamGraph&) = delete;

    // Records what `work` queues on the stream, without running it. The memory it works on must stay: what it
    // allocates itself must come from a MemoryPool that lives as long. It must not wait, nor read host memory
    // that changes. Run it once before, so that algorithms are chosen. Throws what `work` throws, and
    // Error(internal) where something in it cannot be recorded; the stream then goes on as if nothing had
    // been asked of it.
    void record(const Stream& stream, std::function<void()> work);
    bool recorded() const { return handle_ || work_; }
    void launch(const Stream& stream) const;

private:
    void* handle_ = nullptr;  // cudaGraphExec_t
    std::function<void()> work_;
};

namespace cuda {  // implemented by cuda/ and, throwing "built without CUDA", by cuda_absent/
void* record_graph(const Stream& stream, const std::function<void()>& work);
void launch_graph(const Stream& stream, void* graph);
void destroy_graph(void* graph) noexcept;
}  // namespace cuda

}  // namespace levin::kernels
