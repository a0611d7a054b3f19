#include "parallel/communicator.h"

namespace levin {

void Communicator::check(const char* call, const Tensor& tensor, bool reduced) const {
    LEVIN_CHECK(tensor.defined(), name_, "{}: undefined tensor", call);
    LEVIN_CHECK(tensor.is_contiguous(), name_, "{}: tensor {} is not contiguous", call,
                to_string(tensor.shape()));
    if (!reduced) return;
    const DType type = tensor.dtype();
    LEVIN_CHECK(is_floating(type) || type == DType::i64 || type == DType::i32, name_,
                "{}: {} cannot be reduced; f64, f32, bf16, i64 and i32 can", call, to_string(type));
}

void Communicator::check_peer(const char* call, int peer) const {
    LEVIN_CHECK(peer >= 0 && peer < size_, name_, "{}: rank {} of {}", call, peer, size_);
}

Pending Communicator::start_all_reduce(const Tensor& tensor, ReduceOp op) {
    check("all_reduce", tensor, true);
    return do_all_reduce(tensor, op);
}

Pending Communicator::start_all_gather(const Tensor& part, const Tensor& whole) {
    check("all_gather", part, false);
    check("all_gather", whole, false);
    LEVIN_CHECK(part.dtype() == whole.dtype() && part.count() * size_ == whole.count(), name_,
                "all_gather: {} parts of {} {} do not make {} {}", size_, part.count(),
                to_string(part.dtype()), whole.count(), to_string(whole.dtype()));
    return do_all_gather(part, whole);
}

Pending Communicator::start_reduce_scatter(const Tensor& whole, const Tensor& part, ReduceOp op) {
    check("reduce_scatter", whole, true);
    check("reduce_scatter", part, true);
    LEVIN_CHECK(part.dtype() == whole.dtype() && part.count() * size_ == whole.count(), name_,
                "reduce_scatter: {} {} do not fall into {} parts of {} {}", whole.count(),
                to_string(whole.dtype()), size_, part.count(), to_string(part.dtype()));
    return do_reduce_scatter(whole, part, op);
}

Pending Communicator::start_broadcast(const Tensor& tensor, int root) {
    check("broadcast", tensor, false);
    check_peer("broadcast", root);
    return do_broadcast(tensor, root);
}

Pending Communicator::start_send(const Tensor& tensor, int to) {
    check("send", tensor, false);
    check_peer("send", to);
    return do_send(tensor, to);
}

Pending Communicator::start_recv(const Tensor& tensor, int from) {
    check("recv", tensor, false);
    check_peer("recv", from);
    return do_recv(tensor, from);
}

Pending Communicator::start_barrier() { return do_barrier(); }

void Communicator::finish(Pending work) {
    if (grouping_)
        grouped_.push_back(std::move(work));
    else
        work->wait();
}

void Communicator::all_reduce(const Tensor& tensor, ReduceOp op) { finish(start_all_reduce(tensor, op)); }
void Communicator::all_gather(const Tensor& part, const Tensor& whole) {
    finish(start_all_gather(part, whole));
}
void Communicator::reduce_scatter(const Tensor& whole, const Tensor& part, ReduceOp op) {
    finish(start_reduce_scatter(whole, part, op));
}
void Communicator::broadcast(const Tensor& tensor, int root) { finish(start_broadcast(tensor, root)); }
void Communicator::send(const Tensor& tensor, int to) { finish(start_send(tensor, to)); }
void Communicator::recv(const Tensor& tensor, int from) { finish(start_recv(tensor, from)); }
void Communicator::barrier() { finish(start_barrier()); }

void Communicator::group(const std::function<void()>& calls) {
    LEVIN_CHECK(!grouping_, name_, "a group inside a group");
    grouping_ = true;
    try {
        group_begin();
        calls();
        group_end();
    } catch (...) {
        grouping_ = false;
        grouped_.clear();
        throw;
    }
    grouping_ = false;
    const std::vector<Pending> works = std::move(grouped_);
    grouped_.clear();
    for (const Pending& work : works) work->wait();
}

}  // namespace levin
