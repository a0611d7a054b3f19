#include "parallel/mpi/collectives.h"

#include <algorithm>
#include <cstring>

#include "parallel/mpi/hosts.h"
#include "parallel/reduce.h"

namespace levin::mpi {

namespace {

char* bytes_of(const Tensor& tensor) { return static_cast<char*>(tensor.data()); }

// What all collectives share: who we are, and a place for what the others send.
class Collective : public Operation {
protected:
    explicit Collective(const Call& call)
        : Operation(call), rank_(call.rank), size_(call.size), hosts_(call.hosts) {}

    template <class Body>
    void each_peer(const Body& body) const {
        // Starting at the next rank spreads the load: not everybody writes to rank 0 first.
        for (int i = 1; i < size_; ++i) body((rank_ + i) % size_);
    }

    // Receives `bytes` from every peer into scratch memory.
    void gather_to_scratch(size_t bytes, int round) {
        const MemoryScope scope(MemoryCategory::workspace);
        scratch_ = Tensor::empty({static_cast<int64_t>(bytes) * (size_ - 1)}, DType::u8);
        slot_bytes_ = bytes;
        each_peer([&](int peer) { post_recv(slot(peer), bytes, peer, round); });
    }

    // Combines this rank's `own` with what the peers sent, in rank order or by host.
    void reduce(const void* own, void* out, int64_t count, DType dtype, ReduceOp op) {
        std::vector<const void*> parts(static_cast<size_t>(size_));
        for (int p = 0; p < size_; ++p) parts[static_cast<size_t>(p)] = p == rank_ ? own : slot(p);
        if (hosts_)
            reduce_in_host_order(*hosts_, parts, out, count, dtype, op);
        else
            reduce_in_rank_order(parts, out, count, dtype, op);
        scratch_ = {};
    }

    const int rank_, size_;
    const std::shared_ptr<const Hosts> hosts_;

private:
    char* slot(int peer) const {
        return bytes_of(scratch_) + slot_bytes_ * static_cast<size_t>(peer < rank_ ? peer : peer - 1);
    }
    Tensor scratch_;
    size_t slot_bytes_ = 0;
};

// Below this, one latency counts for more than bytes.
constexpr size_t kSmall = 16 * 1024;

bool small(const Call& call, const Tensor& tensor) {
    return tensor.bytes() * static_cast<size_t>(call.size) <= kSmall;
}

// A reduction asks its tensors for their memory once: whoever asks later waits for the reduction.
class AllReduce : public Collective {
public:
    AllReduce(const Call& call, const Tensor& tensor, ReduceOp op)
        : Collective(call), tensor_(tensor), data_(bytes_of(tensor)), op_(op), small_(small(call, tensor)) {}

    void begin() override {
        if (small_) {
            gather_to_scratch(tensor_.bytes(), 0);
            each_peer([&](int peer) { post_send(data_, tensor_.bytes(), peer, 0); });
        } else {
            gather_to_scratch(part_bytes(rank_), 0);
            each_peer([&](int peer) { post_send(part(peer), part_bytes(peer), peer, 0); });
        }
    }

    void advance() override {
        if (round_++ > 0) return;
        if (small_) return reduce(data_, data_, tensor_.count(), tensor_.dtype(), op_);
        reduce(part(rank_), part(rank_), first(rank_ + 1) - first(rank_), tensor_.dtype(), op_);
        each_peer([&](int peer) { post_recv(part(peer), part_bytes(peer), peer, 1); });
        each_peer([&](int peer) { post_send(part(rank_), part_bytes(rank_), peer, 1); });
    }

private:
    int64_t first(int rank) const {
        return tensor_.count() / size_ * rank + std::min<int64_t>(rank, tensor_.count() % size_);
    }
    char* part(int rank) const { return data_ + static_cast<size_t>(first(rank)) * size_of(tensor_.dtype()); }
    size_t part_bytes(int rank) const {
        return static_cast<size_t>(first(rank + 1) - first(rank)) * size_of(tensor_.dtype());
    }

    Tensor tensor_;
    char* data_;
    ReduceOp op_;
    bool small_;
    int round_ = 0;
};

class ReduceScatter : public Collective {
public:
    ReduceScatter(const Call& call, const Tensor& whole, const Tensor& part, ReduceOp op)
        : Collective(call),
          whole_(whole),
          part_(part),
          data_(bytes_of(whole)),
          target_(bytes_of(part)),
          op_(op) {}

    void begin() override {
        gather_to_scratch(part_.bytes(), 0);
        each_peer([&](int peer) { post_send(share(peer), part_.bytes(), peer, 0); });
    }
    void advance() override {
        if (round_++ == 0) reduce(share(rank_), target_, part_.count(), part_.dtype(), op_);
    }

private:
    char* share(int rank) const { return data_ + part_.bytes() * static_cast<size_t>(rank); }

    Tensor whole_, part_;
    char *data_, *target_;
    ReduceOp op_;
    int round_ = 0;
};

class AllGather : public Collective {
public:
    AllGather(const Call& call, const Tensor& part, const Tensor& whole)
        : Collective(call), part_(part), whole_(whole) {}

    void begin() override {
        each_peer([&](int peer) { post_recv(share(peer), part_.bytes(), peer, 0); });
        each_peer([&](int peer) { post_send(part_.data(), part_.bytes(), peer, 0); });
        if (share(rank_) != bytes_of(part_)) std::memcpy(share(rank_), part_.data(), part_.bytes());
    }

private:
    char* share(int rank) const { return bytes_of(whole_) + part_.bytes() * static_cast<size_t>(rank); }

    Tensor part_, whole_;
};

// A binomial tree: after round k, 2^k ranks have the data. Receives from the parent, then sends to the
// children.
class Broadcast : public Collective {
public:
    Broadcast(const Call& call, const Tensor& tensor, int root)
        : Collective(call),
          tensor_(tensor),
          root_(root),
          place_((call.rank - root + call.size) % call.size) {}

    void begin() override {
        if (place_ == 0) return send_on();
        int bit = 1;
        while (!(place_ & bit)) bit <<= 1;
        post_recv(tensor_.data(), tensor_.bytes(), member(place_ - bit), 0);
    }
    void advance() override {
        if (place_ != 0 && round_++ == 0) send_on();
    }

private:
    int member(int place) const { return (place + root_) % size_; }
    void send_on() {
        int bit = 1;
        while (bit < size_ && !(place_ & bit)) bit <<= 1;  // the children are place + every lower bit
        for (bit >>= 1; bit > 0; bit >>= 1)
            if (place_ + bit < size_) post_send(tensor_.data(), tensor_.bytes(), member(place_ + bit), 0);
    }

    Tensor tensor_;
    int root_, place_;
    int round_ = 0;
};

class PointToPoint : public Operation {
public:
    PointToPoint(const Call& call, const Tensor& tensor, int peer, bool incoming)
        : Operation(call), tensor_(tensor), peer_(peer), incoming_(incoming) {}

    void begin() override {
        if (incoming_)
            post_recv(tensor_.data(), tensor_.bytes(), peer_, 0);
        else
            post_send(tensor_.data(), tensor_.bytes(), peer_, 0);
    }

private:
    Tensor tensor_;
    int peer_;
    bool incoming_;
};

// Dissemination: after step k everybody has heard, through others, of the 2^(k+1) - 1 ranks before it.
class Barrier : public Operation {
public:
    explicit Barrier(const Call& call) : Operation(call) {}
    void begin() override { step(); }
    void advance() override { step(); }

private:
    void step() {
        if (distance_ >= size()) return;
        post_recv(&heard_, 1, (rank() - distance_ + size()) % size(), 0);
        post_send(&said_, 1, (rank() + distance_) % size(), 0);
        distance_ *= 2;
    }
    int distance_ = 1;
    char heard_ = 0, said_ = 1;
};

}  // namespace

std::shared_ptr<Operation> all_reduce(const Call& call, const Tensor& tensor, ReduceOp op) {
    if (call.hosts && !small(call, tensor)) return by_host(call, tensor, {}, op, true);
    return std::make_shared<AllReduce>(call, tensor, op);
}
std::shared_ptr<Operation> reduce_scatter(const Call& call, const Tensor& whole, const Tensor& part,
                                          ReduceOp op) {
    if (call.hosts) return by_host(call, whole, part, op, false);
    return std::make_shared<ReduceScatter>(call, whole, part, op);
}
std::shared_ptr<Operation> all_gather(const Call& call, const Tensor& part, const Tensor& whole) {
    if (call.hosts) return by_host(call, whole, part, std::nullopt, true);
    return std::make_shared<AllGather>(call, part, whole);
}
std::shared_ptr<Operation> broadcast(const Call& call, const Tensor& tensor, int root) {
    return std::make_shared<Broadcast>(call, tensor, root);
}
std::shared_ptr<Operation> send(const Call& call, const Tensor& tensor, int to) {
    return std::make_shared<PointToPoint>(call, tensor, to, false);
}
std::shared_ptr<Operation> recv(const Call& call, const Tensor& tensor, int from) {
    return std::make_shared<PointToPoint>(call, tensor, from, true);
}
std::shared_ptr<Operation> barrier(const Call& call) { return std::make_shared<Barrier>(call); }

}  // namespace levin::mpi
