#include "parallel/data_parallel.h"

#include <algorithm>

namespace levin {

namespace {

constexpr int64_t kAlignment = 64;  // bytes: gradients start on cache lines, for vectorised kernels

// Makes the gradient of a parameter that took no part exist, as zero, through the graph like any other.
void add_nothing(const Variable& parameter) {
    const Device device = parameter.value().device();
    const Variable nothing = record("no_gradient", {parameter}, Tensor::zeros({1}, DType::f32, device),
                                    [](const Tensor&, Gradients& inputs) {
                                        inputs.accumulate(0, [](Tensor& target, double beta) {
                                            if (beta == 0) target.fill(0);
                                        });
                                    });
    backward(nothing);
}

}  // namespace

DataParallel::DataParallel(std::vector<Variable> parameters, std::shared_ptr<Communicator> ranks,
                           size_t bucket_bytes)
    : parameters_(std::move(parameters)),
      ranks_(std::move(ranks)),
      bucket_of_(parameters_.size()),
      ready_(parameters_.size(), false) {
    // First the layout, then the memory: a bucket's size is known when the next one begins.
    struct Place {
        size_t bucket;
        int64_t offset;
    };
    std::vector<Place> places(parameters_.size());
    std::vector<int64_t> counts;
    std::vector<const Variable*> first;
    for (size_t i = parameters_.size(); i-- > 0;) {
        const Variable& parameter = parameters_[i];
        LEVIN_CHECK(parameter.is_leaf() && parameter.requires_grad(), "data parallel",
                    "parameter {} is no leaf that needs a gradient", i);
        const DType type = accumulator_of(parameter.dtype());
        const int64_t line = kAlignment / static_cast<int64_t>(size_of(type));
        const int64_t count = (parameter.value().count() + line - 1) / line * line;
        const bool fits = !counts.empty() && accumulator_of(first.back()->dtype()) == type &&
                          first.back()->value().device() == parameter.value().device() &&
                          static_cast<size_t>(counts.back() + count) * size_of(type) <= bucket_bytes;
        if (!fits) {
            counts.push_back(0);
            first.push_back(&parameter);
        }
        places[i] = {counts.size() - 1, counts.back()};
        counts.back() += count;
    }
    const MemoryScope scope(MemoryCategory::gradients);
    for (size_t b = 0; b < counts.size(); ++b) {
        Bucket bucket;
        bucket.memory =
            Tensor::zeros({counts[b]}, accumulator_of(first[b]->dtype()), first[b]->value().device());
        buckets_.push_back(std::move(bucket));
    }
    for (size_t i = 0; i < parameters_.size(); ++i) {
        Variable& parameter = parameters_[i];
        Bucket& bucket = buckets_[places[i].bucket];
        bucket_of_[i] = places[i].bucket;
        ++bucket.gradients;
        parameter.set_gradient_buffer(
            bucket.memory.narrow(0, places[i].offset, parameter.value().count()).view(parameter.shape()));
        parameter.set_gradient_hook([this, i](Variable&) { ready(i); });
    }
}

DataParallel::~DataParallel() {
    for (Variable& parameter : parameters_) parameter.set_gradient_hook({});
}

void DataParallel::reduce_next_backward() {
    LEVIN_CHECK(!armed_, "data parallel", "finish() is due before the next update");
    armed_ = true;
    next_ = 0;
    std::fill(ready_.begin(), ready_.end(), false);
    for (Bucket& bucket : buckets_) bucket.missing = bucket.gradients;
}

void DataParallel::ready(size_t parameter) {
    if (!armed_) return;
    LEVIN_CHECK(!ready_[parameter], "data parallel",
                "the gradient of parameter {} changed again after it was reduced: only one backward pass may "
                "run between reduce_next_backward() and finish()",
                parameter);
    ready_[parameter] = true;
    --buckets_[bucket_of_[parameter]].missing;
    start_ready_buckets();
    ranks_->progress();
}

void DataParallel::start_ready_buckets() {
    for (; next_ < buckets_.size() && buckets_[next_].missing == 0; ++next_)
        buckets_[next_].work = ranks_->start_all_reduce(buckets_[next_].memory);
}

void DataParallel::finish() {
    LEVIN_CHECK(armed_, "data parallel", "finish() without reduce_next_backward()");
    started_early_ = next_;
    for (size_t i = parameters_.size(); i-- > 0;) {
        if (ready_[i]) continue;
        // A gradient of an earlier micro-batch may be there: then it is complete as it is.
        if (parameters_[i].gradient().defined())
            ready(i);
        else
            add_nothing(parameters_[i]);
    }
    for (Bucket& bucket : buckets_) {
        bucket.work->wait();
        bucket.work.reset();
    }
    armed_ = false;
}

void DataParallel::broadcast_parameters() {
    ranks_->group([&] {
        for (const Variable& parameter : parameters_) ranks_->broadcast(parameter.value(), 0);
    });
}

}  // namespace levin
