#include "data/loader.h"

#include <algorithm>
#include <chrono>

#include "data/counter_hash.h"
#include "kernels/base/error.h"

namespace levin {

Loader::Loader(std::shared_ptr<const Dataset> dataset, const LoaderOptions& options)
    : dataset_(std::move(dataset)), options_(options) {
    LEVIN_REQUIRE(options.length > 0, "data", "the sequence length is {}, must be positive", options.length);
    LEVIN_REQUIRE(options.vocab_size > 0 && options.vocab_size <= INT32_MAX, "data",
                  "the vocabulary has {} tokens, expected 1 to 2^31 - 1", options.vocab_size);
    dataset_->check_vocabulary(options.vocab_size);
    const auto& streams = dataset_->streams();
    for (size_t s = 0; s < streams.size(); ++s) {
        const int64_t samples = streams[s].num_samples(options.length);
        LEVIN_REQUIRE(samples > 0, streams[s].name(),
                      "has {} tokens, a single sequence of length {} needs {}; add text, or set a shorter "
                      "trainer.sequence_length",
                      streams[s].num_tokens(), options.length, options.length + 1);
        orders_.push_back(
            {samples, streams.size() == 1 ? options.seed : counter_hash(options.seed, s), options.shuffle});
        samples_per_epoch_ += samples;
    }
    if (streams.size() > 1) mixture_.emplace(dataset_->weights(), options.seed);
}

void Loader::fill_row(int64_t sample, int64_t row, Batch& batch) const {
    const Mixture::Draw draw = mixture_ ? (*mixture_)(sample) : Mixture::Draw{0, sample};
    const auto stream_index = static_cast<size_t>(draw.source);
    const TokenStream& stream = dataset_->streams()[stream_index];
    const int64_t length = options_.length, first = orders_[stream_index](draw.number) * length;
    int32_t* inputs = batch.inputs.data() + row * length;
    int32_t* targets = batch.targets.data() + row * length;
    stream.read(first, length, options_.vocab_size, inputs);
    std::copy(inputs + 1, inputs + length, targets);
    stream.read(first + length, 1, options_.vocab_size, targets + length - 1);

    if (options_.packed) batch.cu_seqlens.push_back(static_cast<int32_t>(row * length));
    if (!options_.packed && !options_.mask_document_borders) return;
    std::vector<int64_t> starts;
    stream.append_document_starts(first, length + 1, starts);
    for (const int64_t start : starts) {
        if (start == 0) continue;
        if (options_.packed && start < length) {
            batch.cu_seqlens.push_back(static_cast<int32_t>(row * length + start));
        }
        if (options_.mask_document_borders) targets[start - 1] = -1;
    }
}

Batch Loader::batch(int64_t first_sample, int64_t count) const {
    LEVIN_CHECK(first_sample >= 0 && count > 0, "loader", "samples {} to {} asked for", first_sample,
                first_sample + count);
    const int64_t tokens = count * options_.length;
    LEVIN_REQUIRE(tokens <= INT32_MAX, "data",
                  "a batch of {} sequences of {} tokens has more than 2^31 tokens; make "
                  "trainer.micro_batch smaller",
                  count, options_.length);
    Batch batch;
    batch.first_sample = first_sample;
    batch.count = count;
    batch.length = options_.length;
    batch.inputs.resize(static_cast<size_t>(tokens));
    batch.targets.resize(static_cast<size_t>(tokens));
    for (int64_t row = 0; row < count; ++row) fill_row(first_sample + row, row, batch);
    if (options_.packed) batch.cu_seqlens.push_back(static_cast<int32_t>(tokens));
    return batch;
}

Prefetcher::Prefetcher(const Loader& loader, const PrefetchOptions& options)
    : loader_(loader), options_(options) {
    LEVIN_CHECK(options.first_sample >= 0 && options.count > 0 && options.stride >= 0 && options.depth > 0,
                "prefetcher", "first sample {}, count {}, stride {}, depth {}", options.first_sample,
                options.count, options.stride, options.depth);
    thread_ = std::thread([this] { run(); });
}

Prefetcher::~Prefetcher() {
    {
        const std::lock_guard lock(mutex_);
        stopped_ = true;
    }
    room_.notify_all();
    thread_.join();
}

void Prefetcher::run() {
    for (int64_t i = 0; options_.batches < 0 || i < options_.batches; ++i) {
        {
            std::unique_lock lock(mutex_);
            room_.wait(lock,
                       [&] { return stopped_ || static_cast<int64_t>(queue_.size()) < options_.depth; });
            if (stopped_) return;
        }
        Batch batch;
        std::exception_ptr error;
        try {
            batch = loader_.batch(options_.first_sample + i * options_.stride, options_.count);
        } catch (...) {
            error = std::current_exception();
        }
        const std::lock_guard lock(mutex_);
        if (error) {
            error_ = error;
        } else {
            queue_.push_back(std::move(batch));
        }
        ready_.notify_one();
        if (error) return;
    }
}

Batch Prefetcher::next() {
    const auto start = std::chrono::steady_clock::now();
    std::unique_lock lock(mutex_);
    LEVIN_CHECK(options_.batches < 0 || taken_ < options_.batches, "prefetcher", "batch {} of {} asked for",
                taken_, options_.batches);
    ready_.wait(lock, [&] { return !queue_.empty() || error_; });
    last_wait_ms_ =
        std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
    total_wait_ms_ += last_wait_ms_;
    if (queue_.empty()) std::rethrow_exception(error_);
    Batch batch = std::move(queue_.front());
    queue_.pop_front();
    ++taken_;
    room_.notify_one();
    return batch;
}

}  // namespace levin
