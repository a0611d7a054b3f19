// Caching memory with exact accounting by category.
//
// Freed blocks are kept per device and size class and handed out again, because a training step asks for the
// same sizes over and over and the system's allocator (page faults on CPU, synchronisation on GPU) is far
// slower. On a GPU the cache is stream-ordered by construction: levin queues all work of a device on one
// stream.
#pragma once

#include <array>
#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/op_scope.h"
#include "kernels/base/stream.h"

namespace levin {

namespace detail {
struct PoolBlocks;
}

enum class MemoryCategory : int { parameters, gradients, optimizer, activations, workspace };
inline constexpr int kMemoryCategories = 5;
std::string to_string(MemoryCategory category);

// A block of device memory; returns to the cache when the last tensor that views it goes.
//
// Its owner may take the block away for a while (parameters that are gathered when needed): views stay, and
// the action set with on_next_use() brings the contents back when somebody next asks for them.
class Storage {
public:
    Storage(const Device& device, size_t bytes, MemoryCategory category);
    ~Storage();
    Storage(const Storage&) = delete;
    Storage& operator=(const Storage&) = delete;

    void* data() const {
        if (next_use_) [[unlikely]]
            run_next_use();
        return data_;
    }
    size_t bytes() const { return bytes_; }
    const Device& device() const { return device_; }

    // Gives the block back to the cache; data() is null until restore() takes one again, uninitialised.
    void evict();
    void restore();
    bool evicted() const { return !data_; }
    // `action` runs once, at the start of the next data(); an empty one takes it back. All from one thread.
    void on_next_use(std::function<void()> action) { next_use_ = std::move(action); }

private:
    void run_next_use() const;

    mutable std::function<void()> next_use_;
    Device device_;
    size_t bytes_, block_;
    MemoryCategory category_;
    OpName op_;
    std::shared_ptr<detail::PoolBlocks> pool_;  // null: the cache's own blocks
    void* data_;
};

// Blocks set aside for work that is recorded once and launched again and again (StreamGraph): it writes to
// the same addresses each time, so nobody else may have them meanwhile. Blocks come from the cache and go
// back to it with the pool and the last tensor that uses one; until then each counts as in use, for what it
// was last taken for. Destroy what was recorded first.
class MemoryPool {
public:
    explicit MemoryPool(const Device& device);
    MemoryPool(const MemoryPool&) = delete;

    // While it lives, tensors that this thread makes on the pool's device, and the scratch memory of kernels,
    // are taken from the pool. What is missing comes from the cache or is allocated; the cache is not emptied
    // for it, as freeing would disturb a recording.
    class Scope {
    public:
        explicit Scope(const MemoryPool& pool);
        ~Scope();
        Scope(const Scope&) = delete;

    private:
        std::shared_ptr<detail::PoolBlocks> previous_;
    };
    // Whether tensors of this thread on `device` come from a pool now.
    static bool in_use(const Device& device);

    size_t bytes() const;              // set aside
    size_t blocks_with_users() const;  // held by tensors now

private:
    std::shared_ptr<detail::PoolBlocks> blocks_;
};

// Tensors made while a scope lives are counted under its category; without one, under activations. Per
// thread.
class MemoryScope {
public:
    explicit MemoryScope(MemoryCategory category);
    ~MemoryScope();
    MemoryScope(const MemoryScope&) = delete;
    static MemoryCategory current();

private:
    MemoryCategory previous_;
};

struct MemoryStatistics {
    std::array<size_t, kMemoryCategories> live{};  // bytes in use now, by category
    size_t live_total = 0;
    size_t peak_total = 0;  // highest live_total since the last reset_peak
    size_t cached = 0;      // bytes held for reuse
    size_t in_pools = 0;    // bytes of live_total that pools set aside
};
MemoryStatistics memory_statistics(const Device& device);
void reset_peak_memory(const Device& device);
// Gives the cached blocks back to the system.
void release_cached_memory(const Device& device);
// The categories, one line each, for messages.
std::string memory_table(const Device& device);

// Blocks of one size that one op took for one purpose.
struct MemoryUse {
    MemoryCategory category;
    OpName op;
    size_t block_bytes, blocks;
    size_t bytes() const { return block_bytes * blocks; }
};
// What is in use now, the largest first.
std::vector<MemoryUse> memory_uses(const Device& device);
// Keeps what is in use at the moment when the total next reaches `total` bytes. With the peak of a step as
// `total`, a second step like it gives the contents of the peak.
void watch_memory(const Device& device, size_t total);
std::vector<MemoryUse> watched_memory_uses(const Device& device);  // empty: not reached yet

}  // namespace levin
