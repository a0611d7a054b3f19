#include "kernels/stream_graph.h"

namespace levin::kernels {

StreamGraph::~StreamGraph() {
    if (handle_) cuda::destroy_graph(handle_);
}

void StreamGraph::record(const Stream& stream, std::function<void()> work) {
    if (handle_) cuda::destroy_graph(handle_);
    handle_ = nullptr;
    if (stream.device.is_cuda())
        handle_ = cuda::record_graph(stream, work);
    else
        work_ = std::move(work);
}

void StreamGraph::launch(const Stream& stream) const {
    if (handle_)
        cuda::launch_graph(stream, handle_);
    else
        work_();
}

}  // namespace levin::kernels
