// One communicator over both back ends: CPU tensors travel over MPI, CUDA tensors over NCCL.
#pragma once

#include "parallel/communicator.h"

namespace levin {

// A call of NCCL as it is, for comparison with ours.
enum class NcclCall { none, all_reduce, all_gather, reduce_scatter };

class RoutedCommunicator : public Communicator {
public:
    // `host` carries CPU tensors, barriers and messages between programs.
    explicit RoutedCommunicator(std::shared_ptr<Communicator> host);

    // Connects the ranks' GPUs now; collective. Without it the first collective on a CUDA tensor does.
    // Communicators split off later are connected as well.
    void connect(const Device& gpu);

    // Seconds of each of `calls` calls of NCCL in a row with nothing of ours around them; CUDA tensors.
    double seconds_alone(NcclCall call, const Tensor& whole, const Tensor& part, int64_t calls);

    bool copy_engines() const override;
    std::shared_ptr<void> expose(const std::vector<Tensor>& parts) override;
    void progress() override { host_->progress(); }
    [[noreturn]] void abort(int status) noexcept override;

protected:
    std::shared_ptr<Communicator> do_split(int color, int key, const std::string& name,
                                           const GroupOptions& options) override;
    Pending do_all_reduce(const Tensor& tensor, ReduceOp op) override;
    Pending do_all_gather(const Tensor& part, const Tensor& whole) override;
    Pending do_reduce_scatter(const Tensor& whole, const Tensor& part, ReduceOp op) override;
    Pending do_broadcast(const Tensor& tensor, int root) override;
    Pending do_send(const Tensor& tensor, int to) override;
    Pending do_recv(const Tensor& tensor, int from) override;
    Pending do_barrier() override;
    void group_begin() override;
    void group_end() override;

private:
    Communicator& carrier(const Tensor& tensor);

    std::shared_ptr<Communicator> host_;
    struct Gpu;  // keeps NCCL out of this header
    std::shared_ptr<Gpu> gpu_;
};

}  // namespace levin
