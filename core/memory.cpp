#include "core/memory.h"

#include <fmt/format.h>

#include <bit>
#include <map>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/device_memory.h"

namespace levin {

namespace {

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

    void* take(size_t block, MemoryCategory category) {
        std::lock_guard lock(mutex_);
        void* data = nullptr;
        auto& list = free_[block];
        if (!list.empty()) {
            data = list.back();
            list.pop_back();
            statistics_.cached -= block;
        } else {
            data = allocate_or_trim(block);
        }
        statistics_.live[static_cast<int>(category)] += block;
        statistics_.live_total += block;
        statistics_.peak_total = std::max(statistics_.peak_total, statistics_.live_total);
        return data;
    }

    void give(void* data, size_t block, MemoryCategory category) {
        std::lock_guard lock(mutex_);
        free_[block].push_back(data);
        statistics_.cached += block;
        statistics_.live[static_cast<int>(category)] -= block;
        statistics_.live_total -= block;
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

private:
    void* allocate_or_trim(size_t block) {
        try {
            return kernels::allocate(device_, block);
        } catch (const Error&) {
            trim_locked();
        }
        try {
            return kernels::allocate(device_, block);
        } catch (const Error&) {
            fail(Fault::internal, "memory",
                 "{} has no {:.2f} GiB left for the next tensor.\n{}Three ways out: a smaller "
                 "trainer.micro_batch, "
                 "trainer.recompute=full, or more devices (parallel.*)",
                 to_string(device_), static_cast<double>(block) / (1ull << 30), table(statistics_));
        }
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
        return text + fmt::format("  {:<12} {:>9.3f} GiB\n", "cached",
                                  static_cast<double>(statistics.cached) / (1ull << 30));
    }

private:
    Device device_;
    std::mutex mutex_;
    std::unordered_map<size_t, std::vector<void*>> free_;
    MemoryStatistics statistics_;
};

// Caches live until the process ends: tensors in static storage may outlive any other owner.
Cache& cache_of(const Device& device) {
    static std::mutex mutex;
    static auto* caches = new std::map<std::pair<int, int>, std::unique_ptr<Cache>>;
    std::lock_guard lock(mutex);
    auto& cache = (*caches)[{static_cast<int>(device.type), device.index}];
    if (!cache) cache = std::make_unique<Cache>(device);
    return *cache;
}

thread_local MemoryCategory current_category = MemoryCategory::activations;

}  // namespace

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
      data_(cache_of(device).take(block_, category)) {}

Storage::~Storage() { cache_of(device_).give(data_, block_, category_); }

MemoryScope::MemoryScope(MemoryCategory category) : previous_(current_category) {
    current_category = category;
}
MemoryScope::~MemoryScope() { current_category = previous_; }
MemoryCategory MemoryScope::current() { return current_category; }

MemoryStatistics memory_statistics(const Device& device) { return cache_of(device).statistics(); }
void reset_peak_memory(const Device& device) { cache_of(device).reset_peak(); }
void release_cached_memory(const Device& device) { cache_of(device).trim(); }
std::string memory_table(const Device& device) { return Cache::table(memory_statistics(device)); }

}  // namespace levin
