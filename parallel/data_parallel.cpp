#include "parallel/data_parallel.h"

#include <algorithm>
#include <exception>
#include <map>

#include "parallel/parameter_gatherer.h"

namespace levin {

namespace {

// Reductions under way whose buckets are still in memory, from stage 2 on: at least two, and more up to these
// bytes. Backward then goes on while a reduction queues behind the parameters of a layer (stage 3).
constexpr size_t kBucketsInFlight = 2, kBytesInFlight = size_t{512} << 20;

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

std::vector<DType> gradient_types(const std::vector<Variable>& parameters,
                                  const DataParallel::Options& options) {
    std::vector<DType> types;
    for (size_t i = 0; i < parameters.size(); ++i) {
        const bool narrow = i < options.formed_in_bf16.size() && options.formed_in_bf16[i];
        types.push_back(narrow ? DType::bf16 : accumulator_of(parameters[i].dtype()));
    }
    return types;
}

}  // namespace

DataParallel::DataParallel(std::vector<Variable> parameters, std::shared_ptr<Communicator> ranks,
                           const Options& options)
    : parameters_(std::move(parameters)),
      ranks_(std::move(ranks)),
      stage_(options.stage),
      reduce_in_bf16_(options.reduce_in_bf16),
      bucket_of_(parameters_.size()),
      ready_(parameters_.size(), false) {
    LEVIN_CHECK(stage_ >= 0 && stage_ <= 3, "data parallel", "there is no stage {}", stage_);
    for (BucketPlan& plan : plan_buckets(parameters_, gradient_types(parameters_, options),
                                         stage_ == 3 ? options.units : std::vector<int64_t>{},
                                         options.bucket_bytes, ranks_->size())) {
        const int64_t share = plan.count / ranks_->size();
        const MemoryScope scope(MemoryCategory::gradients);
        Bucket bucket;
        bucket.gradients = Tensor::zeros({plan.count}, plan.gradient_type, plan.device);
        const bool apart = stage_ >= 2 || (stage_ == 1 && rounds(bucket));
        bucket.gradient_share =
            apart ? Tensor::zeros({share}, rounds(bucket) ? DType::bf16 : plan.gradient_type, plan.device)
                  : bucket.gradients.narrow(0, ranks_->rank() * share, share);
        bucket.plan = std::move(plan);
        if (stage_ >= 2) give_back(bucket);
        buckets_.push_back(std::move(bucket));
    }
    if (stage_ > 0) gatherer_ = std::make_unique<ParameterGatherer>(ranks_, stage_ == 3);
    for (size_t b = 0; b < buckets_.size(); ++b)
        for (const BucketPlace& place : buckets_[b].plan.places) {
            Variable& parameter = parameters_[place.parameter];
            bucket_of_[place.parameter] = b;
            parameter.set_gradient_buffer(
                buckets_[b].gradients.narrow(0, place.offset, place.count).view(parameter.shape()));
            parameter.set_gradient_hook([this, i = place.parameter](Variable&) { ready(i); });
        }
    if (stage_ == 0) {
        std::vector<Tensor> gradients;
        for (const Bucket& bucket : buckets_)
            if (!rounds(bucket)) gradients.push_back(bucket.gradients);
        exposed_ = ranks_->expose(gradients);
        return;
    }
    // Units in the order of the forward pass, which is that of the first parameter in each. A unit may have
    // buckets far apart: embedding and head are used together.
    std::map<int64_t, std::vector<size_t>> units;
    std::map<size_t, int64_t> order;
    for (size_t b = buckets_.size(); b-- > 0;)
        units[stage_ == 3 ? buckets_[b].plan.unit : static_cast<int64_t>(b)].push_back(b);
    for (const auto& [unit, buckets] : units) {
        size_t first = parameters_.size();
        for (const size_t b : buckets)
            for (const BucketPlace& place : buckets_[b].plan.places) first = std::min(first, place.parameter);
        order[first] = unit;
    }
    size_t number = 0;
    for (const auto& [first, unit] : order) {
        std::vector<ParameterGatherer::Buffer> buffers;
        for (const size_t b : units[unit]) {
            move_values(buckets_[b]);
            buffers.push_back({buckets_[b].value_share, buckets_[b].values});
            buckets_[b].first = number < ParameterGatherer::kFirstUnits;
        }
        gatherer_->add_unit(std::move(buffers));
        ++number;
    }
    gatherer_->expose();
    release_cached_memory(buckets_[0].plan.device);  // what the parameters lay in before
}

DataParallel::~DataParallel() {
    for (Variable& parameter : parameters_) parameter.set_gradient_hook({});
    // What was started must end before the ranks do anything else, unless the job is coming down.
    const bool orderly = std::uncaught_exceptions() == 0;
    for (Bucket& bucket : buckets_) {
        try {
            if (bucket.work && orderly) complete(bucket);
        } catch (const Error&) {  // the next call fails too, and may throw
        }
        on_next_use(bucket, {});
        bucket.gradients.storage().on_next_use({});
    }
}

void DataParallel::move_values(Bucket& bucket) {
    const BucketPlan& plan = bucket.plan;
    const MemoryScope scope(MemoryCategory::parameters);
    bucket.values = Tensor::zeros({plan.count}, plan.value_type, plan.device);
    for (const BucketPlace& place : plan.places) {
        Variable& parameter = parameters_[place.parameter];
        Tensor target = bucket.values.narrow(0, place.offset, place.count).view(parameter.shape());
        target.copy_from(parameter.value());
        parameter.set_value(target);
    }
    const int64_t share = plan.count / ranks_->size();
    bucket.value_share = bucket.values.narrow(0, ranks_->rank() * share, share);
    if (stage_ == 3) bucket.value_share = bucket.value_share.clone();
}

// The memory of a reduced bucket; the next backward pass that writes to it takes some again.
void DataParallel::give_back(Bucket& bucket) {
    Storage& storage = bucket.gradients.storage();
    storage.evict();
    storage.on_next_use([&storage] { storage.restore(); });
}

void DataParallel::reduce_next_backward() {
    LEVIN_CHECK(!armed_, "data parallel", "finish() is due before the next update");
    armed_ = true;
    if (buckets_.back().work) complete(buckets_.back());
    next_ = retired_ = bytes_in_flight_ = 0;
    std::fill(ready_.begin(), ready_.end(), false);
    for (Bucket& bucket : buckets_) bucket.missing = bucket.plan.places.size();
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

// Its gradients cross in another type than they have.
bool DataParallel::rounds(const Bucket& bucket) const {
    return reduce_in_bf16_ && bucket.gradients.dtype() == DType::f32;
}

void DataParallel::start(Bucket& bucket) {
    Tensor whole = bucket.gradients;
    if (rounds(bucket)) {
        const MemoryScope scope(MemoryCategory::gradients);
        whole = bucket.rounded = whole.to(DType::bf16);
        if (stage_ >= 2) give_back(bucket);
    }
    bucket.work = stage_ == 0 ? ranks_->start_all_reduce(whole)
                              : ranks_->start_reduce_scatter(whole, bucket.gradient_share);
}

void DataParallel::complete(Bucket& bucket) {
    on_next_use(bucket, {});
    bucket.work->wait();
    bucket.work.reset();
    if (bucket.rounded.defined()) {
        if (stage_ == 0) bucket.gradients.copy_from(bucket.rounded);
        bucket.rounded = {};
    } else if (stage_ >= 2) {
        give_back(bucket);
    }
}

// Whoever touches its memory first waits for the reduction: the sums, or the next gradients in their place.
void DataParallel::complete_later(Bucket& bucket) {
    on_next_use(bucket, [this, &bucket] { complete(bucket); });
}

void DataParallel::on_next_use(Bucket& bucket, const std::function<void()>& action) {
    bucket.gradient_share.storage().on_next_use(action);
    Storage& all = bucket.gradients.storage();
    if (!all.evicted()) all.on_next_use(action);  // else what was rounded has gone already
}

void DataParallel::start_ready_buckets() {
    for (; next_ < buckets_.size() && buckets_[next_].missing == 0; ++next_) {
        start(buckets_[next_]);
        if (stage_ < 2) continue;
        bytes_in_flight_ += buckets_[next_].gradients.bytes();
        while (retired_ + kBucketsInFlight <= next_ && bytes_in_flight_ > kBytesInFlight) {
            bytes_in_flight_ -= buckets_[retired_].gradients.bytes();
            complete(buckets_[retired_++]);
        }
    }
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
    for (; retired_ + 1 < buckets_.size(); ++retired_) complete(buckets_[retired_]);
    complete_later(buckets_.back());
    armed_ = false;
}

std::vector<OwnedRange> DataParallel::ranges(const Bucket& bucket, int rank, bool local) const {
    std::vector<OwnedRange> result;
    const int64_t first = local ? bucket.plan.count / ranks_->size() * rank : 0;
    const Tensor& values = local ? bucket.value_share : bucket.values;
    const Tensor& gradients = local ? bucket.gradient_share : bucket.gradients;
    for (const ParameterRange& range : ranges_of_rank(bucket.plan, ranks_->size(), rank)) {
        const int64_t at = range.offset - first;
        result.push_back({range.parameter, range.start, range.count,
                          values.defined() ? values.narrow(0, at, range.count) : Tensor(),
                          gradients.narrow(0, at, range.count), bucket.first, &bucket == &buckets_.back()});
    }
    return result;
}

std::vector<OwnedRange> DataParallel::owned() const {
    std::vector<OwnedRange> result;
    if (stage_ == 0) {
        for (size_t i = 0; i < parameters_.size(); ++i) {
            const Tensor& value = parameters_[i].value();
            result.push_back({i, 0, value.count(), value.view({value.count()}), Tensor(), false,
                              bucket_of_[i] + 1 == buckets_.size()});
        }
        for (const Bucket& bucket : buckets_)
            for (const BucketPlace& place : bucket.plan.places)
                result[place.parameter].gradient = bucket.gradients.narrow(0, place.offset, place.count);
        return result;
    }
    for (const Bucket& bucket : buckets_)
        for (OwnedRange& range : ranges(bucket, ranks_->rank(), true)) result.push_back(std::move(range));
    return result;
}

std::vector<OwnedRange> DataParallel::share_of(int rank) const {
    LEVIN_CHECK(stage_ == 0, "data parallel", "at stage {} a rank has the sums of its own share only",
                stage_);
    std::vector<OwnedRange> result;
    for (const Bucket& bucket : buckets_)
        for (OwnedRange& range : ranges(bucket, rank, false)) result.push_back(std::move(range));
    return result;
}

void DataParallel::publish() {
    if (gatherer_) gatherer_->refresh();
}

void DataParallel::publish_first() {
    if (gatherer_) gatherer_->refresh_first();
}

void DataParallel::broadcast_parameters() {
    ranks_->group([&] {
        for (const Variable& parameter : parameters_) ranks_->broadcast(parameter.value(), 0);
    });
}

}  // namespace levin
