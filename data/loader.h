// Batches of token sequences for training and evaluation, in host memory.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "data/dataset.h"
#include "data/sampler.h"

namespace levin {

struct LoaderOptions {
    int64_t length = 0;      // tokens per sequence
    int64_t vocab_size = 0;  // of the model; a token that is not below it stops the run with Error(input)
    uint64_t seed = 0;
    bool shuffle = true;                 // false: the natural order, for evaluation
    bool packed = false;                 // fill Batch::cu_seqlens
    bool mask_document_borders = false;  // no target across a border of two documents
};

struct Batch {
    int64_t first_sample = 0, count = 0, length = 0;
    std::vector<int32_t> inputs;   // [count, length]
    std::vector<int32_t> targets;  // [count, length]; the token after each input, -1: none
    // Packed documents: borders in the flattened [count * length], from 0 to count * length, ascending; every
    // row and every document starts one. Empty unless LoaderOptions::packed.
    std::vector<int32_t> cu_seqlens;
};

// Samples are numbered without end: sample s is in epoch s / samples_per_epoch(). What sample s holds depends
// on the data set, the length, the seed and s alone; the state of a run is the number of its next sample.
// Safe to use from any number of threads.
class Loader {
public:
    // Throws Error(input) when a data set has fewer than length + 1 tokens, or a larger vocabulary than the
    // model.
    Loader(std::shared_ptr<const Dataset> dataset, const LoaderOptions& options);

    // Of a weighted mixture: the samples of all its sets together.
    int64_t samples_per_epoch() const { return samples_per_epoch_; }
    const LoaderOptions& options() const { return options_; }
    const Dataset& dataset() const { return *dataset_; }

    // Samples first_sample .. first_sample + count. Data-parallel ranks ask for different ones.
    Batch batch(int64_t first_sample, int64_t count) const;

private:
    void fill_row(int64_t sample, int64_t row, Batch& batch) const;

    std::shared_ptr<const Dataset> dataset_;
    LoaderOptions options_;
    std::vector<SampleOrder> orders_;  // one per stream
    std::optional<Mixture> mixture_;
    int64_t samples_per_epoch_ = 0;
};

struct PrefetchOptions {
    int64_t first_sample = 0;  // of the first batch
    int64_t count = 1;         // samples per batch
    int64_t stride =
        1;  // from one batch's first sample to the next one's; count * ranks for data parallelism
    int64_t batches = -1;  // how many there are; -1: no end
    int64_t depth = 2;     // batches kept ready
};

// The batches first_sample, first_sample + stride, .., made ahead by a thread.
class Prefetcher {
public:
    // `loader` must outlive the prefetcher.
    Prefetcher(const Loader& loader, const PrefetchOptions& options);
    ~Prefetcher();
    Prefetcher(const Prefetcher&) = delete;
    Prefetcher& operator=(const Prefetcher&) = delete;

    // The next batch. Rethrows what stopped the thread, after the batches before it. Asking beyond the last
    // batch is a bug and throws.
    Batch next();
    // Milliseconds next() has waited, the last time and in all: the metric data_wait_ms.
    double last_wait_ms() const { return last_wait_ms_; }
    double total_wait_ms() const { return total_wait_ms_; }

private:
    void run();

    const Loader& loader_;
    const PrefetchOptions options_;
    std::mutex mutex_;
    std::condition_variable room_, ready_;
    std::deque<Batch> queue_;
    std::exception_ptr error_;
    bool stopped_ = false;
    int64_t taken_ = 0;
    double last_wait_ms_ = 0, total_wait_ms_ = 0;
    std::thread thread_;  // last: it uses all the others
};

}  // namespace levin
