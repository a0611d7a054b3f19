// Large collectives among the GPUs of one host over their copy engines: peers write into each other's windows
// (CUDA IPC, NVLink), streams wait for flags, and multiprocessors do nothing but the sums. NCCL's kernels
// hold multiprocessors for the whole time of a transfer, which slows the products beside them by a quarter.
//
// Sums are formed in rank order, as over MPI: the same bits at any size and from run to run.
#pragma once

#include <cuda_runtime_api.h>

#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/copy_engine/schedule.h"
#include "parallel/gpu_event.h"

namespace levin::copy_engine {

class Exchange {
public:
    // Collective over `ranks`, whose GPU is `device`. Null on all of them when a rank is on another host, a
    // GPU cannot reach a peer's memory, or there are more than 8, awaited more than 2. The window takes up to
    // 32 (gathers) or 320 MiB.
    static std::shared_ptr<Exchange> make(Communicator& ranks, int device, CopyEngines use);
    // Collective, with nothing in flight; abandon() first when the peers may not come.
    ~Exchange();
    Exchange(const Exchange&) = delete;
    Exchange& operator=(const Exchange&) = delete;

    // Is a collective on so many bytes in all faster here? Small ones are all latency, which NCCL has less
    // of.
    bool sums(size_t bytes, DType dtype) const {
        return bytes >= size_t{4} << 20 && is_floating(dtype) && window_.ring[0] > 0;
    }
    bool gathers(size_t bytes) const { return bytes >= size_t{1} << 20; }

    // Each begins after `ready`; the tensors may be used again once join() lets a stream go on.
    void all_reduce(const Tensor& tensor, cudaEvent_t ready);
    void reduce_scatter(const Tensor& whole, const Tensor& part, cudaEvent_t ready);
    void all_gather(const Tensor& part, const Tensor& whole, cudaEvent_t ready);
    // Communicator::expose(): from now on the peers read these tensors when they gather or all_reduce them.
    std::shared_ptr<void> expose(const std::vector<Tensor>& parts);
    // `stream` goes on when everything begun since the last call has ended, but for swaps.
    void join(cudaStream_t stream);

    // all_reduce of two ranks as a swap: it needs no multiprocessor before settle() queues the sums, of this
    // swap and those begun before it, on the stream that needs one. A swap that is never settled stops the
    // peer. `sent` will be recorded when what goes out has left the tensor.
    bool can_swap(size_t bytes) const { return schedule_.can_swap(bytes); }
    uint64_t swap(const Tensor& tensor, const std::shared_ptr<GpuEvent>& sent);
    // Where swaps travel, one after another; let it wait until the tensor is ready.
    cudaStream_t swap_stream() const { return streams_[static_cast<size_t>(Queue::swap_out)]; }
    void settle(uint64_t swap, cudaStream_t stream);

    // The job is coming down: the destructor waits for nothing.
    void abandon() { abandoned_ = true; }

private:
    struct Half {  // of a swap, still to be queued
        Steps steps;
        Tensor tensor;
        std::shared_ptr<GpuEvent> sent;
    };
    Exchange(Communicator& ranks, int device, const Window& window);
    bool connect();
    const std::vector<char*>* exposed(const Tensor& part) const;  // null: it is not
    // `only`: the steps of this action. `exposed`: where the peers' sources lie.
    void run(const Steps& steps, const Tensor& source, const Tensor& target,
             std::optional<Step::Action> only = {}, const std::vector<char*>* exposed = nullptr);
    void begin(cudaEvent_t ready, std::initializer_list<Queue> queues);
    cudaStream_t& stream(Queue queue) { return streams_[static_cast<size_t>(queue)]; }

    class Exposure;

    Communicator& ranks_;
    int device_;
    Window window_;
    Schedule schedule_;
    Tensor memory_;                       // this rank's window
    std::vector<char*> peers_;            // everybody's windows, mapped here
    std::vector<void*> opened_;           // and what that took
    cudaStream_t streams_[kQueues] = {};  // that of Queue::user is set while a swap is settled
    bool open_[kQueues] = {};             // begun, not joined
    cudaEvent_t event_ = nullptr;
    std::vector<Half> swaps_;
    uint64_t settled_ = 0;  // swaps before those in swaps_
    // By own part (address, bytes): everybody's, by rank.
    std::map<std::pair<const void*, size_t>, std::vector<char*>> exposed_;
    bool abandoned_ = false;
};

}  // namespace levin::copy_engine
