// Data parallelism: gradients summed over ranks while backward still runs.
//
// Gradients live in buckets, filled in the order backward completes them (reverse order of the parameters); a
// gradient is a view of its bucket, so nothing is copied. When the last gradient of a bucket is complete, its
// all_reduce starts; hooks of later gradients move it on. The communicator sums in rank order, so the result
// does not depend on the size of the buckets.
#pragma once

#include <memory>
#include <vector>

#include "core/autograd.h"
#include "parallel/communicator.h"

namespace levin {

class DataParallel {
public:
    // `parameters` in the order the forward pass uses them; each becomes the owner of a gradient buffer and a
    // hook. A bucket holds about `bucket_bytes` of one gradient type; a larger parameter gets its own.
    DataParallel(std::vector<Variable> parameters, std::shared_ptr<Communicator> ranks, size_t bucket_bytes);
    // Takes the hooks off again; the gradients stay.
    ~DataParallel();
    DataParallel(const DataParallel&) = delete;
    DataParallel& operator=(const DataParallel&) = delete;

    // Before the backward pass of the last micro-batch of an update: from now on complete gradients are
    // reduced. Earlier micro-batches accumulate on their rank alone.
    void reduce_next_backward();
    // After it: reduces what is left and waits. Every gradient is then the sum over ranks of what the ranks
    // had. Losses are sums over tokens, scaled by 1 / (tokens of all ranks), so this is the gradient of the
    // mean. A parameter that took no part on this rank counts as zero.
    void finish();

    // Copies rank 0's values of all parameters to the others.
    void broadcast_parameters();

    size_t bucket_count() const { return buckets_.size(); }
    // How many buckets had been started when finish() was called last: what overlapped with backward.
    size_t started_early() const { return started_early_; }

private:
    struct Bucket {
        Tensor memory;
        size_t missing = 0;    // gradients not complete yet
        size_t gradients = 0;  // in all
        Pending work;
    };
    void ready(size_t parameter);
    void start_ready_buckets();

    std::vector<Variable> parameters_;
    std::shared_ptr<Communicator> ranks_;
    std::vector<Bucket> buckets_;
    std::vector<size_t> bucket_of_;  // by parameter
    std::vector<bool> ready_;        // by parameter
    size_t next_ = 0;                // first bucket not started: they start in order, on every rank alike
    size_t started_early_ = 0;
    bool armed_ = false;
};

}  // namespace levin
