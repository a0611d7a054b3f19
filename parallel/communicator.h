// How ranks talk to each other: one small interface on Tensors. MPI carries it for CPU tensors (mpi/), a
// process alone has the self communicator (self.h); README.md says how NCCL attaches.
//
// Sums are formed in rank order for every element, whatever the size of the call: ((x0 + x1) + x2) + ..., or
// in host order (GroupOptions). Every rank gets the same bits, on every run, and cutting a tensor into
// buckets changes nothing. bf16 sums are formed in f32 and rounded once. A NaN on any rank makes sum and max
// NaN.
//
// All ranks of a communicator make the same collective calls in the same order. Tensors are contiguous.
// Every failure is an Error(communication).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace levin {

enum class ReduceOp { sum, max };

// A started operation. Its tensors may be neither read nor written before it has ended; the memory is kept
// alive. On a GPU, "ended" means that work queued later on the tensor's stream sees the result.
class Work {
public:
    virtual ~Work() = default;
    // Makes progress without blocking; true once it has ended.
    virtual bool test() = 0;
    virtual void wait() = 0;
};
using Pending = std::shared_ptr<Work>;

// Whether large CUDA tensors go over the copy engines (copy_engine/exchange.h) where GPUs of one host reach
// each other's memory, so that what computes meanwhile keeps its multiprocessors: what other work hides, what
// is waited for soon (between two ranks; more are faster over NCCL), or gathers alone.
enum class CopyEngines { none, overlapped, awaited, gathers };

// How the ranks of a split talk to each other.
struct GroupOptions {
    CopyEngines copy_engines = CopyEngines::none;
    // MPI: ranks that give the same number are on one host. Where several hosts have several ranks each, as
    // many on every one, large tensors cross the network once a host, and sums are formed in host order: over
    // the ranks of each host, then over the hosts. NCCL finds the hosts itself.
    int host = 0;
};

class Communicator {
public:
    virtual ~Communicator() = default;
    Communicator(const Communicator&) = delete;
    Communicator& operator=(const Communicator&) = delete;

    int rank() const { return rank_; }
    int size() const { return size_; }
    // For messages: "world", "world.dp".
    const std::string& name() const { return name_; }

    // Each blocks until ended; inside group() it returns at once.
    // In place; same shape and type everywhere: f64, f32, bf16, i64, i32.
    void all_reduce(const Tensor& tensor, ReduceOp op = ReduceOp::sum);
    // whole = part of rank 0, part of rank 1, ..: size() * part.count() elements of any type. `part` may be
    // its own place in `whole`.
    void all_gather(const Tensor& part, const Tensor& whole);
    // part = this rank's share (by count, in rank order) of the reduction of `whole`; types as all_reduce.
    void reduce_scatter(const Tensor& whole, const Tensor& part, ReduceOp op = ReduceOp::sum);
    void broadcast(const Tensor& tensor, int root);
    // Messages between two ranks arrive in the order sent. A blocking send may wait for its receive: send and
    // receive in both directions belong in one group().
    void send(const Tensor& tensor, int to);
    void recv(const Tensor& tensor, int from);
    void barrier();

    // The same, started: work goes on (whenever any call of this or another communicator, test() or
    // progress() runs) while the caller computes.
    Pending start_all_reduce(const Tensor& tensor, ReduceOp op = ReduceOp::sum);
    Pending start_all_gather(const Tensor& part, const Tensor& whole);
    Pending start_reduce_scatter(const Tensor& whole, const Tensor& part, ReduceOp op = ReduceOp::sum);
    Pending start_broadcast(const Tensor& tensor, int root);
    Pending start_send(const Tensor& tensor, int to);
    Pending start_recv(const Tensor& tensor, int from);
    Pending start_barrier();
    // Whether copy engines carry large CUDA tensors (CopyEngines).
    virtual bool copy_engines() const { return false; }
    // Lets the others read `parts` where they lie: all_gather and all_reduce of one of them then take no copy
    // on the way, where copy engines carry it. Parts have memory as long as the result lives. Collective,
    // with as many parts of the same sizes in the same order everywhere, and so is letting go of the result,
    // with nothing in flight, before this communicator goes. Null where there is nothing to gain.
    virtual std::shared_ptr<void> expose(const std::vector<Tensor>& /*parts*/) { return nullptr; }
    // Moves started operations on; cheap when there are none.
    virtual void progress() {}

    // Runs `calls`, whose operations on this communicator go out together as one launch and have all ended
    // when group() returns: one latency for several tensors, of several types.
    void group(const std::function<void()>& calls);

    // A communicator of the ranks that gave the same colour, ordered by (key, rank); null for colour < 0.
    // Collective, with nothing in flight. `name` says what the part is: "dp", "tp".
    std::shared_ptr<Communicator> split(int color, int key, const std::string& name,
                                        const GroupOptions& options = {}) {
        return do_split(color, key, name, options);
    }

    // Ends every rank of the job now, with this exit status. Never waits for a peer.
    [[noreturn]] virtual void abort(int status) noexcept = 0;

protected:
    Communicator(int rank, int size, std::string name) : rank_(rank), size_(size), name_(std::move(name)) {}

    virtual std::shared_ptr<Communicator> do_split(int color, int key, const std::string& name,
                                                   const GroupOptions& options) = 0;
    // Arguments are checked before these are called.
    virtual Pending do_all_reduce(const Tensor& tensor, ReduceOp op) = 0;
    virtual Pending do_all_gather(const Tensor& part, const Tensor& whole) = 0;
    virtual Pending do_reduce_scatter(const Tensor& whole, const Tensor& part, ReduceOp op) = 0;
    virtual Pending do_broadcast(const Tensor& tensor, int root) = 0;
    virtual Pending do_send(const Tensor& tensor, int to) = 0;
    virtual Pending do_recv(const Tensor& tensor, int from) = 0;
    virtual Pending do_barrier() = 0;
    // Bracket the calls of a group, whose works are waited for after it.
    virtual void group_begin() {}
    virtual void group_end() {}

private:
    void finish(Pending work);
    void check(const char* call, const Tensor& tensor, bool reduced) const;
    void check_peer(const char* call, int peer) const;

    int rank_, size_;
    std::string name_;
    bool grouping_ = false;
    std::vector<Pending> grouped_;
};

}  // namespace levin
