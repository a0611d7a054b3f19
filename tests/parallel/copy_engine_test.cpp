// The steps of copy-engine collectives, run in memory by many ranks in any order their queues allow.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include "parallel/copy_engine/schedule.h"

namespace levin::copy_engine {
namespace {

enum class Order { side_by_side, one_hardware_queue };

// Ranks that run their steps one at a time; who is next is drawn by lot.
class Host {
public:
    Host(const Window& window, uint64_t seed) : window_(window), random_(seed) {
        for (int r = 0; r < window.ranks; ++r) {
            schedules.emplace_back(window, r);
            memory_.emplace_back(window.bytes() / sizeof(int64_t) + 1, 0);
        }
    }

    // Several collectives in a row on every rank: sources and targets by collective and rank.
    struct Call {
        std::vector<std::vector<Step>> steps;               // by rank
        std::vector<std::vector<int64_t>*> source, target;  // by rank
    };
    void run(const std::vector<Call>& calls, Order order) {
        struct Place {
            const Call* call;
            const Step* step;
        };
        const int ranks = window_.ranks;
        std::vector<std::vector<Place>> todo(static_cast<size_t>(ranks));
        for (const Call& call : calls)
            for (int r = 0; r < ranks; ++r)
                for (const Step& step : call.steps[size_t(r)]) todo[size_t(r)].push_back({&call, &step});
        std::vector<std::vector<char>> done(static_cast<size_t>(ranks));
        for (int r = 0; r < ranks; ++r) done[size_t(r)].assign(todo[size_t(r)].size(), 0);
        while (true) {
            // Everything that may run next: the first open step of each queue, or of each rank.
            std::vector<std::pair<int, size_t>> able;
            bool open = false;
            for (int r = 0; r < ranks; ++r) {
                bool seen[kQueues] = {};
                for (size_t i = 0; i < todo[size_t(r)].size(); ++i) {
                    const Step& step = *todo[size_t(r)][i].step;
                    if (done[size_t(r)][i] || seen[int(step.queue)]) continue;
                    seen[int(step.queue)] = open = true;
                    if (ready(r, step, todo[size_t(r)], done[size_t(r)], i)) able.emplace_back(r, i);
                    if (order == Order::one_hardware_queue) break;
                    if (std::count(std::begin(seen), std::end(seen), true) == kQueues) break;
                }
            }
            if (!open) return;
            ASSERT_FALSE(able.empty()) << "every queue waits";
            const auto [rank, at] = able[random_() % able.size()];
            execute(rank, *todo[size_t(rank)][at].call, *todo[size_t(rank)][at].step);
            done[size_t(rank)][at] = 1;
        }
    }

    std::vector<Schedule> schedules;

private:
    char* bytes(int rank) { return reinterpret_cast<char*>(memory_[size_t(rank)].data()); }
    uint32_t& flag(int rank, const Step& step, int peer) {
        return *reinterpret_cast<uint32_t*>(bytes(rank) + window_.flag(step.kind, step.consumed, peer));
    }
    template <class Places>
    bool ready(int rank, const Step& step, const Places& todo, const std::vector<char>& done, size_t at) {
        if (step.action == Step::Action::wait)
            return static_cast<int32_t>(flag(rank, step, step.peer) - step.value) >= 0;
        if (step.action != Step::Action::follow) return true;
        for (size_t i = 0; i < at; ++i)
            if (todo[i].step->queue == step.after && !done[i]) return false;
        return true;
    }
    void execute(int rank, const Call& call, const Step& step) {
        const auto source = [&](size_t offset) {
            EXPECT_LE(offset + step.bytes, call.source[size_t(rank)]->size() * sizeof(int64_t));
            return reinterpret_cast<char*>(call.source[size_t(rank)]->data()) + offset;
        };
        const auto target = [&](size_t offset) {
            EXPECT_LE(offset + step.bytes, call.target[size_t(rank)]->size() * sizeof(int64_t));
            return reinterpret_cast<char*>(call.target[size_t(rank)]->data()) + offset;
        };
        const bool window = step.action != Step::Action::pull;
        EXPECT_LE(step.bytes, window ? window_.ring[size_t(step.kind)] : step.bytes);
        switch (step.action) {
            case Step::Action::put:
                std::memcpy(bytes(step.peer) + step.to, source(step.from), step.bytes);
                break;
            case Step::Action::pull:
                std::memcpy(target(step.to),
                            reinterpret_cast<const char*>(call.source[size_t(step.peer)]->data()) + step.from,
                            step.bytes);
                break;
            case Step::Action::copy:
                std::memcpy(target(step.to), bytes(rank) + step.from, step.bytes);
                break;
            case Step::Action::signal:
                flag(step.peer, step, rank) = step.value;
                break;
            case Step::Action::sum: {
                // Not commutative, so that the order shows: ((x0 * 31 + x1) * 31 + x2) ..
                const size_t count = step.bytes / sizeof(int64_t);
                std::vector<int64_t> sum(count, 0);
                for (int p = 0; p < window_.ranks; ++p) {
                    const char* part = p == rank
                                           ? source(step.from)
                                           : bytes(rank) + window_.place(step.kind, rank, p) + step.ring;
                    for (size_t i = 0; i < count; ++i)
                        sum[i] = sum[i] * 31 + reinterpret_cast<const int64_t*>(part)[i];
                }
                std::memcpy(target(step.to), sum.data(), step.bytes);
                break;
            }
            case Step::Action::wait:
            case Step::Action::follow:
                break;
        }
    }

    Window window_;
    std::mt19937_64 random_;
    std::vector<std::vector<int64_t>> memory_;
};

using Values = std::vector<std::vector<int64_t>>;  // by rank

Values drawn(int ranks, size_t count, uint64_t seed) {
    std::mt19937_64 random(seed);
    Values values(static_cast<size_t>(ranks), std::vector<int64_t>(count));
    for (auto& mine : values)
        for (int64_t& value : mine) value = static_cast<int64_t>(random() % 1000);
    return values;
}

std::vector<int64_t> sums(const Values& values) {
    std::vector<int64_t> result(values[0].size(), 0);
    for (const auto& mine : values)
        for (size_t i = 0; i < mine.size(); ++i) result[i] = result[i] * 31 + mine[i];
    return result;
}

template <class Make>
Host::Call call(Host& host, Values& source, Values& target, const Make& make) {
    Host::Call result;
    for (size_t r = 0; r < source.size(); ++r) {
        result.steps.push_back(make(host.schedules[r]));
        result.source.push_back(&source[r]);
        result.target.push_back(&target[r]);
    }
    return result;
}

class CopyEngine : public testing::TestWithParam<int> {};

TEST_P(CopyEngine, EveryOrderOfStepsGivesTheSumsInRankOrder) {
    const int ranks = GetParam();
    const auto width = static_cast<size_t>(ranks);
    for (const Order order : {Order::side_by_side, Order::one_hardware_queue}) {
        // Chunks of 1 MiB, so that these sizes take 1 to 3 of them; rings that they do not fill evenly.
        Host host({.ranks = ranks, .ring = {5 << 19, 4 << 20, 20 << 20}}, 7);
        for (const size_t count : {size_t{1}, size_t{40}, size_t{300001}}) {
            Values reduced = drawn(ranks, count * width, count), again = drawn(ranks, count + 5, count + 1);
            Values whole = drawn(ranks, count * width, count + 2), part = drawn(ranks, count, 0);
            Values share = drawn(ranks, count, count + 3), gathered = drawn(ranks, count * width, 0);
            Values exposed = drawn(ranks, count, count + 4), pulled = gathered;
            Values read = drawn(ranks, count * width - 3 % count, count + 5);
            const Values sent = share, shown = exposed;
            const auto expected_read = sums(read), expected = sums(reduced), expected_again = sums(again),
                       expected_whole = sums(whole);
            std::vector<Host::Call> calls;
            calls.push_back(call(host, reduced, reduced, [&](Schedule& s) {
                return s.all_reduce(count * width * sizeof(int64_t), 8);
            }));
            calls.push_back(call(host, whole, part,
                                 [&](Schedule& s) { return s.reduce_scatter(count * sizeof(int64_t)); }));
            calls.push_back(call(host, share, gathered,
                                 [&](Schedule& s) { return s.all_gather(count * sizeof(int64_t)); }));
            calls.push_back(call(host, again, again, [&](Schedule& s) {
                return s.all_reduce((count + 5) * sizeof(int64_t), 8);
            }));
            calls.push_back(call(host, exposed, pulled,
                                 [&](Schedule& s) { return s.all_gather(count * sizeof(int64_t), true); }));
            calls.push_back(call(host, read, read, [&](Schedule& s) {
                return s.all_reduce(read[0].size() * sizeof(int64_t), 8, true);
            }));
            // When a rank's steps have ended it may write to what the others read.
            calls.push_back(call(host, again, exposed, [&](Schedule&) {
                return Steps{{.action = Step::Action::follow, .queue = Queue::user, .after = Queue::copies},
                             {.action = Step::Action::pull,
                              .queue = Queue::user,
                              .peer = 0,
                              .bytes = count * sizeof(int64_t)}};
            }));
            host.run(calls, order);
            if (HasFatalFailure()) return;
            for (size_t r = 0; r < width; ++r) {
                EXPECT_EQ(reduced[r], expected) << "rank " << r << " of " << ranks << ", " << count;
                EXPECT_EQ(read[r], expected_read) << "rank " << r << " of " << ranks << ", " << count;
                EXPECT_EQ(again[r], expected_again) << "rank " << r << " of " << ranks << ", " << count;
                EXPECT_TRUE(std::equal(part[r].begin(), part[r].end(),
                                       expected_whole.begin() + static_cast<ptrdiff_t>(r * count)));
                EXPECT_EQ(share[r], sent[r]);
                for (size_t p = 0; p < width; ++p) {
                    if (p == r) continue;
                    const auto place = static_cast<ptrdiff_t>(p * count);
                    EXPECT_TRUE(std::equal(sent[p].begin(), sent[p].end(), gathered[r].begin() + place));
                    EXPECT_TRUE(std::equal(shown[p].begin(), shown[p].end(), pulled[r].begin() + place))
                        << "rank " << r << " read what rank " << p << " wrote later";
                }
            }
        }
    }
}

// The sums of swaps are formed later, beside other collectives; a ring takes many before and after.
TEST(CopyEngineSwap, SumsAreFormedWhenTheyAreNeeded) {
    for (const Order order : {Order::side_by_side, Order::one_hardware_queue}) {
        Host host({.ranks = 2, .ring = {5 << 19, 4 << 20, 20 << 20}}, 11);
        for (const size_t count : {size_t{1}, size_t{300001}, size_t{900000}}) {
            const size_t bytes = count * sizeof(int64_t);
            std::vector<Values> swapped;
            for (uint64_t i = 0; i < 2; ++i) swapped.push_back(drawn(2, count, count + i));
            Values beside = drawn(2, count, count + 9);
            const auto expected_beside = sums(beside);
            std::vector<std::vector<int64_t>> expected;
            std::vector<Host::Call> calls, later;
            for (Values& values : swapped) {
                expected.push_back(sums(values));
                std::vector<Steps> in;
                calls.push_back(call(host, values, values, [&](Schedule& s) {
                    EXPECT_TRUE(s.can_swap(bytes));
                    Schedule::Swap halves = s.swap(bytes);
                    in.push_back(std::move(halves.in));
                    return halves.out;
                }));
                size_t rank = 0;
                later.push_back(call(host, values, values, [&](Schedule&) {
                    Steps steps = std::move(in[rank++]);
                    steps.insert(
                        steps.begin(),
                        {.action = Step::Action::follow, .queue = Queue::user, .after = Queue::swap_out});
                    return steps;
                }));
            }
            EXPECT_FALSE(host.schedules[0].can_swap(15 << 20)) << "the ring is not settled";
            calls.push_back(call(host, beside, beside, [&](Schedule& s) { return s.all_reduce(bytes, 8); }));
            for (Host::Call& one : later) calls.push_back(std::move(one));
            for (Schedule& schedule : host.schedules)
                for (size_t i = 0; i < 2; ++i) schedule.settled(bytes);
            EXPECT_TRUE(host.schedules[0].can_swap(15 << 20));
            host.run(calls, order);
            if (HasFatalFailure()) return;
            for (size_t r = 0; r < 2; ++r) {
                for (size_t i = 0; i < 2; ++i) EXPECT_EQ(swapped[i][r], expected[i]) << count;
                EXPECT_EQ(beside[r], expected_beside);
            }
        }
    }
    EXPECT_FALSE(Schedule(Window{.ranks = 3, .ring = {5 << 19, 4 << 20, 20 << 20}}, 0).can_swap(1 << 20));
}

INSTANTIATE_TEST_SUITE_P(Ranks, CopyEngine, testing::Values(2, 3, 4, 8));

TEST(CopyEngineWindow, FlagsAndRingsDoNotOverlap) {
    const Window window{.ranks = 3, .ring = {4096, 512, 256}};
    std::vector<std::pair<size_t, size_t>> places;
    for (const Kind kind : {Kind::reduce, Kind::gather, Kind::swap}) {
        for (int peer = 0; peer < 3; ++peer)
            for (const bool consumed : {false, true})
                places.emplace_back(window.flag(kind, consumed, peer), sizeof(uint32_t));
        for (const int source : {0, 2})
            places.emplace_back(window.place(kind, 1, source), window.ring[size_t(kind)]);
    }
    std::sort(places.begin(), places.end());
    for (size_t i = 1; i < places.size(); ++i)
        EXPECT_LE(places[i - 1].first + places[i - 1].second, places[i].first);
    EXPECT_EQ(places.back().first + places.back().second, window.bytes());
}

}  // namespace
}  // namespace levin::copy_engine
