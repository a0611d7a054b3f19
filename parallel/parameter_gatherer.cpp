#include "parallel/parameter_gatherer.h"

#include <algorithm>
#include <exception>

namespace levin {

ParameterGatherer::ParameterGatherer(std::shared_ptr<Communicator> ranks, bool evict)
    : ranks_(std::move(ranks)), evict_(evict) {}

ParameterGatherer::~ParameterGatherer() {
    // What was started must end before the ranks do anything else, unless the job is coming down.
    const bool orderly = std::uncaught_exceptions() == 0;
    for (size_t u = 0; u < units_.size(); ++u) {
        unwatch(u);
        try {
            for (const Pending& work : units_[u].works)
                if (orderly) work->wait();
        } catch (const Error&) {  // the next call fails too, and may throw
        }
        units_[u].works.clear();
    }
}

void ParameterGatherer::add_unit(std::vector<Buffer> buffers) {
    units_.push_back({std::move(buffers), {}, !evict_});
    if (evict_) {
        give_back(units_.size() - 1);
        watch(units_.size() - 1);
    }
}

void ParameterGatherer::expose() {
    std::vector<Tensor> parts;
    for (const Unit& unit : units_)
        for (const Buffer& buffer : unit.buffers) parts.push_back(buffer.share);
    exposed_ = ranks_->expose(parts);
}

void ParameterGatherer::watch(size_t unit) {
    for (const Buffer& buffer : units_[unit].buffers)
        buffer.whole.storage().on_next_use([this, unit] { touch(unit); });
}

void ParameterGatherer::unwatch(size_t unit) {
    for (const Buffer& buffer : units_[unit].buffers) buffer.whole.storage().on_next_use({});
}

void ParameterGatherer::gather(size_t unit) {
    Unit& u = units_[unit];
    if (u.present) return;
    unwatch(unit);
    for (const Buffer& buffer : u.buffers) buffer.whole.storage().restore();
    // One launch: several small messages at once reach the bandwidth of a large one.
    ranks_->group([&] {
        for (const Buffer& buffer : u.buffers)
            u.works.push_back(ranks_->start_all_gather(buffer.share, buffer.whole));
    });
    u.present = true;
    watch(unit);
}

void ParameterGatherer::wait(size_t unit) {
    for (const Pending& work : units_[unit].works) work->wait();
    units_[unit].works.clear();
}

void ParameterGatherer::give_back(size_t unit) {
    wait(unit);
    units_[unit].present = false;
    if (!evict_) return;
    for (const Buffer& buffer : units_[unit].buffers) buffer.whole.storage().evict();
}

// The unit that was used after this one in the last round, itself for none. Where the round went another way
// (an evaluation between two updates), the next place with this unit is taken.
size_t ParameterGatherer::follower(size_t unit) {
    if (order_.empty()) return (unit + 1) % units_.size();
    for (size_t tries = 0; tries < order_.size(); ++tries) {
        const size_t at = (place_ + tries) % order_.size();
        if (order_[at] != unit) continue;
        place_ = (at + 1) % order_.size();
        return place_ == 0 ? unit : order_[place_];  // after the last one the values change
    }
    return unit;
}

void ParameterGatherer::touch(size_t unit) {
    unwatch(unit);
    gather(unit);
    unwatch(unit);
    wait(unit);
    if (!evict_) return;
    if (unit != current_) {
        previous_ = current_;
        current_ = unit;
    }
    seen_.push_back(unit);
    const size_t next = follower(unit);
    // A kernel in the making may still hold addresses of the unit before.
    for (size_t u = 0; u < units_.size(); ++u) {
        if (u == unit || !units_[u].present) continue;
        if (u != previous_ && u != next) give_back(u);
        watch(u);
    }
    if (next != unit) gather(next);
}

void ParameterGatherer::outdate(size_t unit) {
    unwatch(unit);
    if (units_[unit].present) give_back(unit);
}

void ParameterGatherer::refresh_first() {
    for (size_t u = 0; u < units_.size(); ++u) {
        const bool first = u < kFirstUnits;
        if (!first && !evict_) continue;  // the shares lie in it
        outdate(u);
        if (first)
            gather(u);
        else
            watch(u);
    }
    first_done_ = true;
}

void ParameterGatherer::refresh() {
    for (size_t u = first_done_ ? kFirstUnits : 0; u < units_.size(); ++u) {
        outdate(u);
        watch(u);
    }
    first_done_ = false;
    if (!evict_) {
        for (size_t u = 0; u < units_.size(); ++u) gather(u);
        return;
    }
    if (!seen_.empty()) order_ = std::move(seen_);
    seen_.clear();
    place_ = 0;
    if (order_.empty()) return;
    // Backward ended with one unit; forward begins with another.
    current_ = previous_ = order_[0];
    gather(order_[0]);
    if (order_.size() > 1) gather(order_[1]);
}

}  // namespace levin
