// Working memory of a thread, and tasks shared out between threads.
#pragma once

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "kernels/base/parallel_for.h"

namespace levin::kernels::cpu {

// Memory that is handed out piece by piece and taken back all at once. One per thread, kept between kernels,
// so that a kernel called for every token does not allocate. Holds what the largest task so far needed.
class Scratch {
public:
    // The calling thread's scratch, emptied: what was taken from it before is invalid.
    static Scratch& fresh() {
        static thread_local Scratch scratch;
        scratch.reset();
        return scratch;
    }
    // `count` elements, uninitialised, aligned to a cache line.
    template <class R>
    R* take(int64_t count) {
        const size_t bytes =
            (static_cast<size_t>(count) * sizeof(R) + kAlignment - 1) / kAlignment * kAlignment;
        if (used_ + bytes > size_) grow(bytes);
        void* piece = blocks_.back().get() + used_;
        used_ += bytes;
        return static_cast<R*>(piece);
    }

private:
    static constexpr size_t kAlignment = 64;
    struct Free {
        void operator()(std::byte* memory) const { ::operator delete (memory, std::align_val_t{kAlignment}); }
    };
    void grow(size_t bytes) {
        size_ = std::max(bytes, std::max<size_t>(total_, 1 << 16));
        blocks_.emplace_back(static_cast<std::byte*>(::operator new (size_, std::align_val_t{kAlignment})));
        total_ += size_;
        used_ = 0;
    }
    void reset() {
        if (blocks_.size() > 1) {  // one block for all next time
            const size_t bytes = total_;
            blocks_.clear();
            total_ = size_ = 0;
            grow(bytes);
        }
        used_ = 0;
    }
    std::vector<std::unique_ptr<std::byte, Free>> blocks_;
    size_t size_ = 0, used_ = 0, total_ = 0;  // of the last block; of all
};

// Powers of a decay run through the denormal numbers, which the processor handles a hundred times slower:
// here they are zero. Restores the thread's mode when it goes.
class FlushDenormals {
public:
#if defined(__SSE2__)
    FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040u); }
    ~FlushDenormals() { _mm_setcsr(saved_); }
    FlushDenormals(const FlushDenormals&) = delete;

private:
    unsigned saved_;
#else
    FlushDenormals() {}  // not a trivial type, or a guard would count as an unused variable
#endif
};

// Calls body(task) for task 0 .. count-1; each thread takes the next task when it is free, so tasks may
// differ in size (put the large ones first). `work` is the operations of all tasks together: small work stays
// on one thread.
template <class Body>
void for_each_task(int64_t count, double work, const Body& body) {
    constexpr double worth_a_thread = 1e6;  // about 20 microseconds
    const int64_t threads = std::min<int64_t>(
        {count, omp_get_max_threads(), 1 + static_cast<int64_t>(std::min(work / worth_a_thread, 1e9))});
    std::atomic<int64_t> next{0};
    parallel_for(threads, 1, [&](int64_t, int64_t) {
        const FlushDenormals guard;
        for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < count;) body(task);
    });
}

}  // namespace levin::kernels::cpu
