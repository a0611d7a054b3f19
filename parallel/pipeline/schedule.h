// Who does what when in a pipeline: one table that every rank knows, made from three numbers.
//
// 1F1B (one forward, one backward; PipeDream-Flush) for one stage per rank, its interleaved form
// (Megatron-LM, arXiv 2104.04473) for several: stage s runs on rank s % ranks. A tick is one pass of one
// micro-batch through one stage; what it produces is there for the next tick.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace levin {

struct PipelineAction {
    bool forward = true;
    int64_t stage = 0, micro_batch = 0;
    bool operator==(const PipelineAction&) const = default;
};

class PipelineSchedule {
public:
    // Any number of micro-batches; virtual_stages > 1 needs ranks > 1.
    PipelineSchedule(int64_t ranks, int64_t virtual_stages, int64_t micro_batches);

    int64_t ranks() const { return ranks_; }
    int64_t stages() const { return stages_; }
    int64_t ticks() const { return static_cast<int64_t>(table_.size()); }
    // What the rank does at this tick; nothing: it waits.
    const std::optional<PipelineAction>& at(int64_t tick, int64_t rank) const {
        return table_[static_cast<size_t>(tick)][static_cast<size_t>(rank)];
    }
    // The rank that gets the result of an action; -1: nobody (loss, gradient of the embedding).
    int64_t receiver(const PipelineAction& action) const;

    // Most micro-batches times stages whose activations the rank keeps at one time.
    int64_t most_kept(int64_t rank) const;
    // Share of all rank-ticks that nobody uses.
    double idle() const;
    // A row per rank, a column per tick: "F0 F1 .. B0", with "F1.2" for micro-batch 1 at the rank's third
    // stage.
    std::string print() const;

private:
    int64_t ranks_, stages_;
    std::vector<std::vector<std::optional<PipelineAction>>> table_;
};

}  // namespace levin
