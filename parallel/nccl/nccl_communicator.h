// The communicator over NCCL, for CUDA tensors. Implemented by nccl_communicator.cpp and, in a build without
// NCCL, by absent.cpp, which throws Error(input).
#pragma once

#include "parallel/communicator.h"

namespace levin::nccl {

// Operations run on a stream of their own: each waits, on the GPU, for what was queued on the tensor's stream
// before the call; Work::wait() makes the tensor's stream wait for the operation. The host never waits.
//
// Where GroupOptions ask for them and the GPUs can, copy engines carry large tensors
// (copy_engine/exchange.h).
//
// Sums over NCCL are exact reductions of the ranks' values in an order that NCCL chooses: with two ranks the
// same bits as over MPI, with more the same up to rounding, and the same bits on every run of the same calls.
// max ignores a NaN unless all ranks have one there.
class GpuCommunicator : public Communicator {
public:
    // Bracket the calls of a group: they go out as one launch.
    virtual void open_group() = 0;
    virtual void close_group() = 0;
    // Collective over this communicator, after the host's split(color, key), which gave `part`; null for
    // null.
    virtual std::shared_ptr<GpuCommunicator> split_gpus(int color, int key, Communicator* part,
                                                        const GroupOptions& options) = 0;
    // Seconds of each of `calls` bare calls in a row; `call` is an NcclCall of routed.h.
    virtual double seconds_alone(int call, const Tensor& whole, const Tensor& part, int64_t calls) = 0;
    // Ends what is in flight without waiting for peers; no call may follow. From any thread.
    virtual void stop() noexcept = 0;

protected:
    using Communicator::Communicator;
};

bool built();
// "NCCL 2.28.9"; throws as library() does.
std::string version();
// What tells this GPU from the others of its host.
std::string gpu_identity(int index);

// The ranks of `ranks`, each with its own GPU. Collective; the unique id travels over `ranks`.
std::shared_ptr<GpuCommunicator> make_communicator(Communicator& ranks, const Device& device);

}  // namespace levin::nccl
