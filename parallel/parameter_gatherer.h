// Parameters that ranks keep in shares and gather when they are needed (ZeRO stages 1 to 3).
//
// Nobody tells it what the model does next: it sees which unit (a layer) is touched, because the memory of
// the others reports its next use (Storage::on_next_use), and remembers the order of the last update. A unit
// is gathered while the one before it computes, and given back when the one after the next is touched. Every
// rank touches the units in the same order, and so makes the same calls.
//
// What a gather costs in memory traffic counts as much as what crosses: the parts are exposed, so that the
// other ranks copy them from where they lie to where they are used.
#pragma once

#include <vector>

#include "core/tensor.h"
#include "parallel/communicator.h"

namespace levin {

class ParameterGatherer {
public:
    struct Buffer {
        Tensor share, whole;  // [n / ranks] of this rank, [n]
    };
    // `evict`: the memory of `whole` is given back when it is not needed; else it stays, and only the first
    // use after refresh() waits.
    ParameterGatherer(std::shared_ptr<Communicator> ranks, bool evict);
    ~ParameterGatherer();
    ParameterGatherer(const ParameterGatherer&) = delete;
    ParameterGatherer& operator=(const ParameterGatherer&) = delete;

    // Buffers of one unit are gathered together. In the order the forward pass uses them.
    void add_unit(std::vector<Buffer> buffers);
    // After the last unit, before the first gather; collective.
    void expose();
    // The shares hold new values: what is gathered counts no longer. Starts gathering what is needed first.
    void refresh();
    // The same for the first units alone, while the shares of the others are still to change.
    static constexpr size_t kFirstUnits = 2;
    void refresh_first();

private:
    struct Unit {
        std::vector<Buffer> buffers;
        std::vector<Pending> works;
        bool present = false;  // gathered, or on its way
    };
    void touch(size_t unit);
    void gather(size_t unit);
    void wait(size_t unit);
    void give_back(size_t unit);
    void outdate(size_t unit);  // what was gathered counts no longer
    void watch(size_t unit);    // touch() at its next use
    void unwatch(size_t unit);
    size_t follower(size_t unit);

    std::shared_ptr<Communicator> ranks_;
    bool evict_;
    std::vector<Unit> units_;
    std::shared_ptr<void> exposed_;
    bool first_done_ = false;           // since the last refresh()
    std::vector<size_t> order_, seen_;  // of the last round between two calls of refresh(), and of this one
    size_t place_ = 0;                  // in order_
    size_t current_ = 0, previous_ = 0;
};

}  // namespace levin
