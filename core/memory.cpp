#include "core/memory.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <map>
#include <mutex>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/device_memory.h"

namespace levin {

// The blocks of a pool. Guarded by the lock of the device's cache.
struct detail::PoolBlocks final : kernels::ScratchSource {
    struct Idle {
        void* data;
        MemoryCategory category;  // what it was last taken for
        OpName op;
    };
    explicit PoolBlocks(const Device& d) : device(d) {}
    ~PoolBlocks() override;
    void* take(size_t bytes) override;
    bool give(void* data) noexcept override;

    Device device;
    std::unordered_map<size_t, std::vector<Idle>> idle;  // by size class
    size_t bytes = 0, with_users = 0;
    std::unordered_map<void*, size_t> scratch;  // blocks that kernels use now; by the pool's thread
};

namespace {

using detail::PoolBlocks;

// Size classes: eight per power of two, so that at most an eighth of a block is wasted.
size_t size_class(size_t bytes) {
    constexpr size_t kSmallest = 512;
    if (bytes <= kSmallest) return kSmallest;
    const size_t step = std::bit_floor(bytes - 1) / 8;
    return (bytes + step - 1) / step * step;
}

class Cache {
public:
    explicit Cache(const Device& device) : device_(device) {}

    void* take(size_t block, MemoryCategory category, const OpName& op, PoolBlocks* pool) {
        std::lock_guard lock(mutex_);
        void* data = nullptr;
        if (pool && !pool->idle[block].empty()) {
            auto& idle = pool->idle[block];
            data = idle.back().data;
            uncount(block, idle.back().category, idle.back().op);
            idle.pop_back();
        } else {
            auto& list = free_[block];
            if (!list.empty()) {
                data = list.back();
                list.pop_back();
                statistics_.cached -= block;
            } else {
                data = allocate_or_trim(block, !pool);
            }
            if (pool) {
                pool->bytes += block;
                statistics_.in_pools += block;
            }
        }
        if (pool) ++pool->with_users;
        statistics_.live[static_cast<int>(category)] += block;
        statistics_.live_total += block;
        statistics_.peak_total = std::max(statistics_.peak_total, statistics_.live_total);
        ++uses_[{category, op.op, op.backward, block}];
        if (statistics_.live_total >= watched_total_) {
            watched_uses_ = uses();
            watched_total_ = SIZE_MAX;
        }
        return data;
    }

    void give(void* data, size_t block, MemoryCategory category, const OpName& op, PoolBlocks* pool) {
        std::lock_guard lock(mutex_);
        if (pool) {
            pool->idle[block].push_back({data, category, op});
            --pool->with_users;
            return;
        }
        uncount(block, category, op);
        free_[block].push_back(data);
        statistics_.cached += block;
    }

    // The blocks of a pool that nobody needs any more.
    void take_over(PoolBlocks& pool) {
        std::lock_guard lock(mutex_);
        for (auto& [block, idle] : pool.idle)
            for (const PoolBlocks::Idle& entry : idle) {
                uncount(block, entry.category, entry.op);
                free_[block].push_back(entry.data);
                statistics_.cached += block;
                statistics_.in_pools -= block;
            }
    }
    std::pair<size_t, size_t> size_of_pool(const PoolBlocks& pool) {
        std::lock_guard lock(mutex_);
        return {pool.bytes, pool.with_users};
    }

    void trim() {
        std::lock_guard lock(mutex_);
        trim_locked();
    }
    MemoryStatistics statistics() {
        std::lock_guard lock(mutex_);
        return statistics_;
    }
    void reset_peak() {
        std::lock_guard lock(mutex_);
        statistics_.peak_total = statistics_.live_total;
    }
    std::vector<MemoryUse> current_uses() {
        std::lock_guard lock(mutex_);
        return uses();
    }
    void watch(size_t total) {
        std::lock_guard lock(mutex_);
        watched_total_ = total;
        watched_uses_.clear();
    }
    std::vector<MemoryUse> watched_uses() {
        std::lock_guard lock(mutex_);
        return watched_uses_;
    }
    std::string trim_and_describe() {
        std::lock_guard lock(mutex_);
        trim_locked();
        return description();
    }

private:
    void uncount(size_t block, MemoryCategory category, const OpName& op) {
        const auto use = uses_.find({category, op.op, op.backward, block});
        if (--use->second == 0) uses_.erase(use);
        statistics_.live[static_cast<int>(category)] -= block;
        statistics_.live_total -= block;
    }
    void* allocate_or_trim(size_t block, bool may_trim) {
        if (may_trim) {
            try {
                return kernels::allocate(device_, block);
            } catch (const Error&) {
                trim_locked();
            }
        }
        try {
            return kernels::allocate(device_, block);
        } catch (const Error&) {
            fail(Fault::internal, "memory", "{} has no {:.2f} GiB left for the next tensor ({}).\n{}",
                 to_string(device_), static_cast<double>(block) / (1ull << 30), OpScope::current().op,
                 description());
        }
    }
    // For messages: what is used for what, and what to do.
    std::string description() const {
        std::string text = table(statistics_) + "The largest uses:\n";
        const auto all = uses();
        for (size_t i = 0; i < all.size() && i < 6; ++i)
            text += fmt::format("  {:<12} {:>9.3f} GiB  {} x {:.1f} MiB, {}{}\n", to_string(all[i].category),
                                static_cast<double>(all[i].bytes()) / (1ull << 30), all[i].blocks,
                                static_cast<double>(all[i].block_bytes) / (1 << 20), all[i].op.op,
                                all[i].op.backward ? " backward" : "");
        return text + (statistics_.in_pools > 0 ? "trainer.step_graph=off sets nothing aside. " : "") +
               "Three ways out: a smaller trainer.micro_batch (with the same trainer.global_batch), "
               "trainer.recompute=full (for long sequences with trainer.recompute_slice=65536), or more "
               "devices "
               "(parallel.*)";
    }
    std::vector<MemoryUse> uses() const {
        std::vector<MemoryUse> result;
        for (const auto& [key, blocks] : uses_) {
            const auto& [category, op, backward, block] = key;
            result.push_back({category, {op, backward}, block, blocks});
        }
        std::stable_sort(result.begin(), result.end(),
                         [](const MemoryUse& a, const MemoryUse& b) { return a.bytes() > b.bytes(); });
        return result;
    }
    void trim_locked() {
        for (auto& [block, list] : free_)
            for (void* data : list) kernels::release(device_, data);
        free_.clear();
        statistics_.cached = 0;
    }

public:
    static std::string table(const MemoryStatistics& statistics) {
        std::string text;
        for (int i = 0; i < kMemoryCategories; ++i)
            text += fmt::format("  {:<12} {:>9.3f} GiB\n", to_string(static_cast<MemoryCategory>(i)),
                                static_cast<double>(statistics.live[i]) / (1ull << 30));
        if (statistics.in_pools > 0)
            text += fmt::format("  {:<12} {:>9.3f} GiB of these set aside for a recorded step\n", "",
                                static_cast<double>(statistics.in_pools) / (1ull << 30));
        return text + fmt::format("  {:<12} {:>9.3f} GiB\n", "cached",
                                  static_cast<double>(statistics.cached) / (1ull << 30));
    }

private:
    Device device_;
    std::mutex mutex_;
    std::unordered_map<size_t, std::vector<void*>> free_;
    MemoryStatistics statistics_;
    // By category, op, direction and block size. Names are literals and compared by address: the same op from
    // two files may make two lines.
    std::map<std::tuple<MemoryCategory, const char*, bool, size_t>, size_t> uses_;
    size_t watched_total_ = SIZE_MAX;
    std::vector<MemoryUse> watched_uses_;
};

// Caches live until the process ends: tensors in static storage may outlive any other owner.
Cache& cache_of(const Device& device) {
    static std::mutex mutex;
    static auto* caches = new std::map<std::pair<int, int>, std::unique_ptr<Cache>>;
    std::lock_guard lock(mutex);
    auto& cache = (*caches)[{static_cast<int>(device.type), device.index}];
    if (!cache) {
        cache = std::make_unique<Cache>(device);
        kernels::set_memory_reclaimer([](const Device& full) { return cache_of(full).trim_and_describe(); });
    }
    return *cache;
}

thread_local MemoryCategory current_category = MemoryCategory::activations;
thread_local std::shared_ptr<PoolBlocks> current_pool;
constexpr OpName kScratch{"kernel scratch", false};

}  // namespace

detail::PoolBlocks::~PoolBlocks() { cache_of(device).take_over(*this); }
void* detail::PoolBlocks::take(size_t size) {
    const size_t block = size_class(size);
    void* data = cache_of(device).take(block, MemoryCategory::workspace, kScratch, this);
    scratch[data] = block;
    return data;
}
bool detail::PoolBlocks::give(void* data) noexcept {
    const auto found = scratch.find(data);
    if (found == scratch.end()) return false;
    cache_of(device).give(data, found->second, MemoryCategory::workspace, kScratch, this);
    scratch.erase(found);
    return true;
}

MemoryPool::MemoryPool(const Device& device) : blocks_(std::make_shared<PoolBlocks>(device)) {}
size_t MemoryPool::bytes() const { return cache_of(blocks_->device).size_of_pool(*blocks_).first; }
size_t MemoryPool::blocks_with_users() const {
    return cache_of(blocks_->device).size_of_pool(*blocks_).second;
}
bool MemoryPool::in_use(const Device& device) { return current_pool && current_pool->device == device; }

MemoryPool::Scope::Scope(const MemoryPool& pool) : previous_(std::exchange(current_pool, pool.blocks_)) {
    kernels::set_scratch_source(current_pool.get());
}
MemoryPool::Scope::~Scope() {
    current_pool = std::move(previous_);
    kernels::set_scratch_source(current_pool.get());
}

std::string to_string(MemoryCategory category) {
    static constexpr std::array<const char*, kMemoryCategories> names{"parameters", "gradients", "optimizer",
                                                                      "activations", "workspace"};
    return names[static_cast<size_t>(category)];
}

Storage::Storage(const Device& device, size_t bytes, MemoryCategory category)
    : device_(device),
      bytes_(bytes),
      block_(size_class(bytes)),
      category_(category),
      op_(OpScope::current()),
      pool_(MemoryPool::in_use(device) ? current_pool : nullptr),
      data_(cache_of(device).take(block_, category, op_, pool_.get())) {}

Storage::~Storage() { evict(); }

void Storage::evict() {
    if (data_) cache_of(device_).give(data_, block_, category_, op_, pool_.get());
    data_ = nullptr;
}

void Storage::restore() {
    if (!data_) data_ = cache_of(device_).take(block_, category_, op_, pool_.get());
}

void Storage::run_next_use() const {
    while (next_use_) {  // one action may set another
        const std::function<void()> action = std::move(next_use_);
        next_use_ = nullptr;
        action();
    }
}

MemoryScope::MemoryScope(MemoryCategory category) : previous_(current_category) {
    current_category = category;
}
MemoryScope::~MemoryScope() { current_category = previous_; }
MemoryCategory MemoryScope::current() { return current_category; }

MemoryStatistics memory_statistics(const Device& device) { return cache_of(device).statistics(); }
void reset_peak_memory(const Device& device) { cache_of(device).reset_peak(); }
void release_cached_memory(const Device& device) { cache_of(device).trim(); }
std::string memory_table(const Device& device) { return Cache::table(memory_statistics(device)); }
std::vector<MemoryUse> memory_uses(const Device& device) { return cache_of(device).current_uses(); }
void watch_memory(const Device& device, size_t total) { cache_of(device).watch(total); }
std::vector<MemoryUse> watched_memory_uses(const Device& device) { return cache_of(device).watched_uses(); }

}  // namespace levin
