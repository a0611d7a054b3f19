// One thread makes items, several work on them, the calling thread takes the results in the order of the
// items.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

namespace levin {

// produce(Item&) -> bool (false: no more), work(Item&&) -> Result, consume(Result&&). At most `depth` items
// are under way at a time. The first exception in item order is rethrown here after all threads have ended,
// whichever thread it came from, so that a run with any number of threads ends with the same one.
template <class Item, class Result>
void run_ordered(int threads, size_t depth, const std::function<bool(Item&)>& produce,
                 const std::function<Result(Item&&)>& work, const std::function<void(Result&&)>& consume) {
    struct Outcome {
        std::optional<Result> result;
        std::exception_ptr error;
    };
    std::mutex mutex;
    std::condition_variable room, ready, done;
    std::deque<std::pair<uint64_t, Item>> queue;
    std::map<uint64_t, Outcome> outcomes;
    uint64_t produced = 0, consumed = 0;
    bool ended = false, stopped = false;

    const auto producer = [&] {
        for (;;) {
            {
                std::unique_lock lock(mutex);
                room.wait(lock, [&] { return stopped || produced - consumed < depth; });
                if (stopped) return;
            }
            Item item;
            bool more = false;
            std::exception_ptr error;
            try {
                more = produce(item);
            } catch (...) {
                error = std::current_exception();
            }
            const std::lock_guard lock(mutex);
            if (error) outcomes[produced++].error = error;
            if (more) queue.emplace_back(produced++, std::move(item));
            if (!more) ended = true;
            ready.notify_all();
            done.notify_all();
            if (ended) return;
        }
    };
    const auto worker = [&] {
        for (;;) {
            std::pair<uint64_t, Item> job;
            {
                std::unique_lock lock(mutex);
                ready.wait(lock, [&] { return stopped || ended || !queue.empty(); });
                if (stopped || queue.empty()) return;
                job = std::move(queue.front());
                queue.pop_front();
            }
            Outcome outcome;
            try {
                outcome.result.emplace(work(std::move(job.second)));
            } catch (...) {
                outcome.error = std::current_exception();
            }
            const std::lock_guard lock(mutex);
            outcomes[job.first] = std::move(outcome);
            done.notify_all();
        }
    };

    std::vector<std::thread> pool;
    std::exception_ptr error;
    try {
        pool.emplace_back(producer);
        for (int i = 0; i < threads; ++i) pool.emplace_back(worker);
        for (;;) {
            Outcome outcome;
            {
                std::unique_lock lock(mutex);
                done.wait(lock,
                          [&] { return outcomes.count(consumed) > 0 || (ended && consumed == produced); });
                const auto at = outcomes.find(consumed);
                if (at == outcomes.end()) break;
                outcome = std::move(at->second);
                outcomes.erase(at);
                ++consumed;
                room.notify_one();
            }
            if (outcome.error) std::rethrow_exception(outcome.error);
            consume(std::move(*outcome.result));
        }
    } catch (...) {
        error = std::current_exception();
    }
    {
        const std::lock_guard lock(mutex);
        stopped = true;
        room.notify_all();
        ready.notify_all();
    }
    for (std::thread& thread : pool) thread.join();
    if (error) std::rethrow_exception(error);
}

}  // namespace levin
