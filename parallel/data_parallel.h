// Data parallelism: gradients summed over ranks while backward still runs, and what ZeRO adds to it.
//
// Gradients live in buckets, filled in the order backward completes them (reverse order of the parameters); a
// gradient is a view of its bucket, so nothing is copied. When the last gradient of a bucket is complete, its
// reduction starts; hooks of later gradients move it on. Over MPI sums are formed in rank order, so the
// result does not depend on the size of the buckets, nor on the stage:
//
//   stage 0   every rank gets all sums (all_reduce)
//   stage 1   a rank gets the sums of its share of each bucket (reduce_scatter), for which alone it keeps
//             optimizer state, and hands the updated parameters of that share to the others (all_gather)
//   stage 2   as 1, and a bucket's memory is given back once it is reduced
//   stage 3   as 2, and a rank keeps its share of the parameters alone; the others' are gathered ahead of use
//             and given back after (parameter_gatherer.h)
//
// f32 gradients may cross between the ranks as bf16: half the traffic. A rank's sum over its micro-batches is
// rounded once before; over MPI the sum of the ranks is formed in f32 and rounded once. From stage 1 on the
// share stays bf16. So does the bucket for gradients of bf16 parameters that are formed once an update: what
// forms them rounds them, to the same sums.
#pragma once

#include <memory>
#include <vector>

#include "core/autograd.h"
#include "parallel/buckets.h"
#include "parallel/communicator.h"

namespace levin {

class ParameterGatherer;

// A range of a parameter's elements that a rank updates.
struct OwnedRange {
    size_t parameter;
    int64_t start, count;
    Tensor value;     // [count], in the parameter's type: where the new values go
    Tensor gradient;  // [count], complete after finish(); f32 (f64), or bf16 as it was reduced
    bool first;       // the forward pass needs it first: publish_first()
    bool last;        // of the bucket that is reduced last, and whose first use may have to wait
};

class DataParallel {
public:
    struct Options {
        size_t bucket_bytes = size_t{64} << 20;
        int stage = 0;
        // By parameter, for stage 3: parameters with the same number are used together (a layer). Empty: one
        // unit.
        std::vector<int64_t> units = {};
        bool reduce_in_bf16 = false;  // f32 gradients; those in f64 stay as they are
        // By parameter: of type bf16, and its gradient too, formed by one contribution an update. Empty:
        // none.
        std::vector<bool> formed_in_bf16 = {};
    };
    // `parameters` in the order the forward pass uses them; each becomes the owner of a gradient buffer and a
    // hook. From stage 1 on their values move into buckets as well.
    DataParallel(std::vector<Variable> parameters, std::shared_ptr<Communicator> ranks,
                 const Options& options);
    DataParallel(std::vector<Variable> parameters, std::shared_ptr<Communicator> ranks, size_t bucket_bytes)
        : DataParallel(std::move(parameters), std::move(ranks), Options{bucket_bytes}) {}
    // Takes the hooks off again; the gradients stay.
    ~DataParallel();
    DataParallel(const DataParallel&) = delete;
    DataParallel& operator=(const DataParallel&) = delete;

    const std::shared_ptr<Communicator>& ranks() const { return ranks_; }
    int stage() const { return stage_; }

    // Before the backward pass of the last micro-batch of an update: from now on complete gradients are
    // reduced. Earlier micro-batches accumulate on their rank alone.
    void reduce_next_backward();
    // After it: reduces what is left. The gradient of every owned range is then the sum over ranks of what
    // the ranks had; those of the last bucket may be on their way, and their first use waits. Losses are sums
    // over tokens, scaled by 1 / (tokens of all ranks), so this is the gradient of the mean. A parameter that
    // took no part on this rank counts as zero.
    void finish();

    // What this rank updates: at stage 0 every parameter whole, else its share of each bucket.
    std::vector<OwnedRange> owned() const;
    // Stage 0: what rank `rank` would own at the other stages. Norms are summed share by share, so that every
    // stage gets the same bits.
    std::vector<OwnedRange> share_of(int rank) const;
    // After this rank wrote the new values of what it owns: brings everybody's to everybody. Work goes on;
    // the first use of a parameter waits for it.
    void publish();
    // The same for the ranges that are `first`, while the others are still to be written; publish() is due
    // after that.
    void publish_first();

    // Copies rank 0's values of all parameters to the others.
    void broadcast_parameters();

    size_t bucket_count() const { return buckets_.size(); }
    // How many buckets had been started when finish() was called last: what overlapped with backward.
    size_t started_early() const { return started_early_; }

private:
    struct Bucket {
        BucketPlan plan;
        Tensor gradients;       // of all parameters in it
        Tensor gradient_share;  // this rank's part: of `gradients`, or its own memory, as it was reduced
        Tensor values;          // from stage 1 on
        Tensor value_share;     // this rank's part: of `values`, or at stage 3 its own memory
        Tensor rounded;         // `gradients` in flight as bf16, where they are f32; stage 0: then the sums
        bool first = false;     // of the units that the forward pass begins with
        size_t missing = 0;     // gradients not complete yet
        Pending work;
    };
    void ready(size_t parameter);
    void start_ready_buckets();
    void start(Bucket& bucket);
    void complete(Bucket& bucket);
    void complete_later(Bucket& bucket);
    static void on_next_use(Bucket& bucket, const std::function<void()>& action);
    void give_back(Bucket& bucket);
    void move_values(Bucket& bucket);
    bool rounds(const Bucket& bucket) const;
    std::vector<OwnedRange> ranges(const Bucket& bucket, int rank, bool local) const;

    std::vector<Variable> parameters_;
    std::shared_ptr<Communicator> ranks_;
    int stage_;
    bool reduce_in_bf16_;
    std::vector<Bucket> buckets_;
    std::vector<size_t> bucket_of_;  // by parameter
    std::vector<bool> ready_;        // by parameter
    std::unique_ptr<ParameterGatherer> gatherer_;
    std::shared_ptr<void> exposed_;  // at stage 0, the gradients
    size_t next_ = 0;                // first bucket not started: they start in order, on every rank alike
    size_t retired_ = 0;             // first bucket whose reduction nobody waited for
    size_t bytes_in_flight_ = 0;
    size_t started_early_ = 0;
    bool armed_ = false;
};

}  // namespace levin
