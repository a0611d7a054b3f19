#include "parallel/routed.h"

#include <cstdlib>

#include "parallel/nccl/nccl_communicator.h"

namespace levin {

struct RoutedCommunicator::Gpu {
    std::shared_ptr<nccl::GpuCommunicator> ranks;
};

RoutedCommunicator::RoutedCommunicator(std::shared_ptr<Communicator> host)
    : Communicator(host->rank(), host->size(), host->name()), host_(std::move(host)) {}

void RoutedCommunicator::connect(const Device& gpu) {
    if (!gpu_) gpu_ = std::make_shared<Gpu>(Gpu{nccl::make_communicator(*host_, gpu)});
}

double RoutedCommunicator::seconds_alone(NcclCall call, const Tensor& whole, const Tensor& part,
                                         int64_t calls) {
    connect(whole.device());
    return gpu_->ranks->seconds_alone(static_cast<int>(call), whole, part, calls);
}

bool RoutedCommunicator::copy_engines() const { return gpu_ && gpu_->ranks->copy_engines(); }

std::shared_ptr<void> RoutedCommunicator::expose(const std::vector<Tensor>& parts) {
    return gpu_ && !parts.empty() ? gpu_->ranks->expose(parts) : nullptr;
}

Communicator& RoutedCommunicator::carrier(const Tensor& tensor) {
    if (tensor.device().is_cpu()) return *host_;
    connect(tensor.device());
    return *gpu_->ranks;
}

std::shared_ptr<Communicator> RoutedCommunicator::do_split(int color, int key, const std::string& part,
                                                           const GroupOptions& options) {
    const std::shared_ptr<Communicator> host = host_->split(color, key, part, options);
    const bool several = host && host->size() > 1;
    std::shared_ptr<nccl::GpuCommunicator> gpus;
    if (gpu_) gpus = gpu_->ranks->split_gpus(color, key, several ? host.get() : nullptr, options);
    if (!several) return host;
    auto result = std::make_shared<RoutedCommunicator>(host);
    if (gpus) result->gpu_ = std::make_shared<Gpu>(Gpu{std::move(gpus)});
    return result;
}

void RoutedCommunicator::abort(int status) noexcept {
    if (gpu_) gpu_->ranks->stop();
    host_->abort(status);
    std::_Exit(status);  // never reached: abort() does not return
}

Pending RoutedCommunicator::do_all_reduce(const Tensor& tensor, ReduceOp op) {
    return carrier(tensor).start_all_reduce(tensor, op);
}
Pending RoutedCommunicator::do_all_gather(const Tensor& part, const Tensor& whole) {
    return carrier(part).start_all_gather(part, whole);
}
Pending RoutedCommunicator::do_reduce_scatter(const Tensor& whole, const Tensor& part, ReduceOp op) {
    return carrier(whole).start_reduce_scatter(whole, part, op);
}
Pending RoutedCommunicator::do_broadcast(const Tensor& tensor, int root) {
    return carrier(tensor).start_broadcast(tensor, root);
}
Pending RoutedCommunicator::do_send(const Tensor& tensor, int to) {
    return carrier(tensor).start_send(tensor, to);
}
Pending RoutedCommunicator::do_recv(const Tensor& tensor, int from) {
    return carrier(tensor).start_recv(tensor, from);
}
Pending RoutedCommunicator::do_barrier() { return host_->start_barrier(); }

// Messages over MPI are started one by one and waited for together, which needs no bracket.
void RoutedCommunicator::group_begin() {
    if (gpu_) gpu_->ranks->open_group();
}
void RoutedCommunicator::group_end() {
    if (gpu_) gpu_->ranks->close_group();
}

}  // namespace levin
