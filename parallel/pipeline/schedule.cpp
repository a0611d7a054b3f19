#include "parallel/pipeline/schedule.h"

#include <fmt/format.h>

#include <algorithm>

#include "kernels/base/error.h"

namespace levin {

namespace {

// The order in which a rank takes its passes of one kind: micro-batches in groups of `ranks`, each group
// through the rank's first stage, then its second, ..; backward through the last stage first.
std::vector<PipelineAction> order_of(bool forward, int64_t rank, int64_t ranks, int64_t virtual_stages,
                                     int64_t micro_batches) {
    std::vector<PipelineAction> order;
    for (int64_t group = 0; group < micro_batches; group += ranks)
        for (int64_t c = 0; c < virtual_stages; ++c)
            for (int64_t m = group; m < std::min(group + ranks, micro_batches); ++m)
                order.push_back({forward, (forward ? c : virtual_stages - 1 - c) * ranks + rank, m});
    return order;
}

}  // namespace

PipelineSchedule::PipelineSchedule(int64_t ranks, int64_t virtual_stages, int64_t micro_batches)
    : ranks_(ranks), stages_(ranks * virtual_stages) {
    LEVIN_CHECK(ranks > 0 && virtual_stages > 0 && micro_batches > 0 && (ranks > 1 || virtual_stages == 1),
                "pipeline", "{} ranks x {} stages, {} micro-batches", ranks, virtual_stages, micro_batches);
    const int64_t passes = micro_batches * virtual_stages;
    struct Rank {
        std::vector<PipelineAction> forward, backward;
        int64_t forward_done = 0, backward_done = 0;
        int64_t ahead = 0;  // forward passes before the first backward pass
    };
    std::vector<Rank> state;
    for (int64_t p = 0; p < ranks; ++p) {
        const int64_t after = ranks - 1 - p;
        state.push_back({order_of(true, p, ranks, virtual_stages, micro_batches),
                         order_of(false, p, ranks, virtual_stages, micro_batches), 0, 0,
                         virtual_stages == 1 ? after : 2 * after + (virtual_stages - 1) * ranks});
    }
    // done[kind][stage][micro-batch], as of the ticks before this one
    std::vector<std::vector<char>> done[2];
    for (auto& kind : done)
        kind.assign(static_cast<size_t>(stages_), std::vector<char>(static_cast<size_t>(micro_batches), 0));
    const auto is_done = [&](bool forward, int64_t stage, int64_t m) {
        return done[forward ? 0 : 1][static_cast<size_t>(stage)][static_cast<size_t>(m)] != 0;
    };
    const auto possible = [&](const PipelineAction& a) {
        if (a.forward) return a.stage == 0 || is_done(true, a.stage - 1, a.micro_batch);
        return is_done(true, a.stage, a.micro_batch) &&
               (a.stage == stages_ - 1 || is_done(false, a.stage + 1, a.micro_batch));
    };
    for (int64_t left = 2 * passes * ranks; left > 0;) {
        std::vector<std::optional<PipelineAction>> row(static_cast<size_t>(ranks));
        bool any = false;
        for (int64_t p = 0; p < ranks; ++p) {
            Rank& rank = state[static_cast<size_t>(p)];
            const bool room = rank.forward_done - rank.backward_done <= rank.ahead;
            auto& slot = row[static_cast<size_t>(p)];
            if (rank.forward_done < passes && room &&
                possible(rank.forward[static_cast<size_t>(rank.forward_done)]))
                slot = rank.forward[static_cast<size_t>(rank.forward_done)];
            else if (rank.backward_done < passes &&
                     possible(rank.backward[static_cast<size_t>(rank.backward_done)]))
                slot = rank.backward[static_cast<size_t>(rank.backward_done)];
            any |= slot.has_value();
        }
        if (!any) {  // a last group smaller than the pipeline: go on with one more kept
            for (Rank& rank : state) ++rank.ahead;
            continue;
        }
        for (int64_t p = 0; p < ranks; ++p) {
            const auto& slot = row[static_cast<size_t>(p)];
            if (!slot) continue;
            Rank& rank = state[static_cast<size_t>(p)];
            ++(slot->forward ? rank.forward_done : rank.backward_done);
            done[slot->forward ? 0 : 1][static_cast<size_t>(slot->stage)]
                [static_cast<size_t>(slot->micro_batch)] = 1;
            --left;
        }
        table_.push_back(std::move(row));
    }
}

int64_t PipelineSchedule::receiver(const PipelineAction& action) const {
    const int64_t next = action.forward ? action.stage + 1 : action.stage - 1;
    return next < 0 || next >= stages_ ? -1 : next % ranks_;
}

int64_t PipelineSchedule::most_kept(int64_t rank) const {
    int64_t kept = 0, most = 0;
    for (const auto& row : table_)
        if (const auto& slot = row[static_cast<size_t>(rank)]) {
            kept += slot->forward ? 1 : -1;
            most = std::max(most, kept);
        }
    return most;
}

double PipelineSchedule::idle() const {
    int64_t used = 0;
    for (const auto& row : table_)
        for (const auto& slot : row) used += slot.has_value();
    return 1 - static_cast<double>(used) / static_cast<double>(ticks() * ranks_);
}

std::string PipelineSchedule::print() const {
    std::string text;
    size_t width = 0;
    const auto name = [&](const std::optional<PipelineAction>& slot) -> std::string {
        if (!slot) return ".";
        const std::string stage = stages_ > ranks_ ? fmt::format(".{}", slot->stage / ranks_) : "";
        return fmt::format("{}{}{}", slot->forward ? "F" : "B", slot->micro_batch, stage);
    };
    for (const auto& row : table_)
        for (const auto& slot : row) width = std::max(width, name(slot).size());
    for (int64_t rank = 0; rank < ranks_; ++rank) {
        std::string line = fmt::format("rank {:<3}", rank);
        for (const auto& row : table_)
            line += fmt::format(" {:<{}}", name(row[static_cast<size_t>(rank)]), width);
        while (line.back() == ' ') line.pop_back();
        text += line + "\n";
    }
    return text;
}

}  // namespace levin
