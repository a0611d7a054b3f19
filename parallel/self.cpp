#include "parallel/self.h"

#include <cstdlib>
#include <deque>

namespace levin {

namespace {

class Ended : public Work {
public:
    bool test() override { return true; }
    void wait() override {}
};

class SelfCommunicator : public Communicator {
public:
    explicit SelfCommunicator(const std::string& name) : Communicator(0, 1, name) {}

    [[noreturn]] void abort(int status) noexcept override { std::_Exit(status); }

protected:
    std::shared_ptr<Communicator> do_split(int color, int, const std::string& part,
                                           const GroupOptions&) override {
        return color < 0 ? nullptr : make_self_communicator(name() + "." + part);
    }
    Pending do_all_reduce(const Tensor&, ReduceOp) override { return ended_; }
    Pending do_all_gather(const Tensor& part, const Tensor& whole) override { return copy(part, whole); }
    Pending do_reduce_scatter(const Tensor& whole, const Tensor& part, ReduceOp) override {
        return copy(whole, part);
    }
    Pending do_broadcast(const Tensor&, int) override { return ended_; }
    Pending do_send(const Tensor& tensor, int) override {
        messages_.push_back(tensor.clone());
        return ended_;
    }
    Pending do_recv(const Tensor& tensor, int) override {
        LEVIN_CHECK(!messages_.empty(), name(), "recv from itself, but nothing was sent");
        const Tensor message = messages_.front();
        messages_.pop_front();
        LEVIN_CHECK(message.dtype() == tensor.dtype() && message.count() == tensor.count(), name(),
                    "recv: sent {} {}, expected {} {}", message.count(), to_string(message.dtype()),
                    tensor.count(), to_string(tensor.dtype()));
        return copy(message, tensor);
    }
    Pending do_barrier() override { return ended_; }

private:
    Pending copy(const Tensor& from, const Tensor& to) {
        Tensor target = to.view({to.count()});
        if (from.data() != to.data()) target.copy_from(from.view({from.count()}));
        return ended_;
    }

    Pending ended_ = std::make_shared<Ended>();
    std::deque<Tensor> messages_;
};

}  // namespace

std::shared_ptr<Communicator> make_self_communicator(const std::string& name) {
    return std::make_shared<SelfCommunicator>(name);
}

}  // namespace levin
