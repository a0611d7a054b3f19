// What tokenizers keep between words and between calls: a cache of words, and a pool that hands it from
// thread to thread.
#pragma once

#include <xxhash.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <span>
#include <string_view>
#include <vector>

namespace levin {

// Short words and their tokens; a new word takes the place of an older one with the same hash. Hits are
// compared to the byte, so a cache never changes a result. For one thread at a time.
class WordCache {
public:
    // nullptr, or the tokens of the word.
    struct Tokens {
        const int32_t* ids = nullptr;
        size_t count = 0;
    };
    Tokens find(std::string_view word) const {
        if (word.size() > kKeySize) return {};
        const Entry& entry = entries_[slot(word)];
        if (entry.size != word.size() || std::memcmp(entry.key, word.data(), word.size()) != 0) return {};
        return {entry.ids, entry.count};
    }
    // Remembers a word, unless it or its tokens are too many.
    void put(std::string_view word, std::span<const int32_t> ids) {
        if (word.empty() || word.size() > kKeySize || ids.size() > kMostTokens) return;
        Entry& entry = entries_[slot(word)];
        entry.size = static_cast<uint8_t>(word.size());
        entry.count = static_cast<uint8_t>(ids.size());
        std::memcpy(entry.key, word.data(), word.size());
        std::memcpy(entry.ids, ids.data(), ids.size_bytes());
    }

private:
    static constexpr size_t kEntries = size_t{1} << 15, kKeySize = 24, kMostTokens = 8;
    struct Entry {
        uint8_t size = 0, count = 0;  // size 0: empty
        char key[kKeySize] = {};
        int32_t ids[kMostTokens] = {};
    };
    static size_t slot(std::string_view word) {
        return XXH3_64bits(word.data(), word.size()) & (kEntries - 1);
    }

    std::vector<Entry> entries_ = std::vector<Entry>(kEntries);
};

// Objects that a call borrows, so that what they learnt outlives it without belonging to a thread.
template <class T>
class ScratchPool {
public:
    class Lease {
    public:
        explicit Lease(ScratchPool& pool) : pool_(pool) {
            {
                const std::lock_guard lock(pool.mutex_);
                if (!pool.idle_.empty()) {
                    item_ = std::move(pool.idle_.back());
                    pool.idle_.pop_back();
                }
            }
            if (item_ == nullptr) item_ = std::make_unique<T>();
        }
        ~Lease() {
            const std::lock_guard lock(pool_.mutex_);
            pool_.idle_.push_back(std::move(item_));
        }
        Lease(const Lease&) = delete;
        Lease& operator=(const Lease&) = delete;
        T& operator*() { return *item_; }

    private:
        ScratchPool& pool_;
        std::unique_ptr<T> item_;
    };

private:
    std::mutex mutex_;
    std::vector<std::unique_ptr<T>> idle_;
};

}  // namespace levin
