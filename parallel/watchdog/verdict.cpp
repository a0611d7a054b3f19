#include "parallel/watchdog/verdict.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "kernels/base/error.h"

namespace levin {

namespace {

std::string name_of(const RankReport& report, size_t ranks) {
    return fmt::format("rank {} of {} on {}", report.rank, ranks, report.host);
}

// "; rank 0 stands in ..": what the others do, the first few of them.
std::string others(const std::vector<RankReport>& ranks, const std::vector<int>& named) {
    constexpr int kShown = 8;
    std::string text;
    int shown = 0;
    for (const RankReport& report : ranks) {
        if (!report.connected || std::find(named.begin(), named.end(), report.rank) != named.end()) continue;
        if (++shown > kShown) continue;
        text += fmt::format("\n  rank {} on {}: {}", report.rank, report.host, report.activity.text());
    }
    if (shown > kShown) text += fmt::format("\n  and {} more", shown - kShown);
    return text;
}

std::optional<std::string> lost(const std::vector<RankReport>& ranks) {
    std::vector<int> gone;
    const RankReport* first = nullptr;
    for (const RankReport& report : ranks) {
        if (!report.lost) continue;
        if (!first) first = &report;
        gone.push_back(report.rank);
    }
    if (!first) return std::nullopt;
    std::string text = fmt::format(
        "{} ended without a word (killed, crashed, or its host is gone); it was last heard in: {}",
        name_of(*first, ranks.size()), first->activity.text());
    if (gone.size() > 1) {
        text += "\n  gone as well:";
        for (size_t i = 1; i < gone.size(); ++i)
            text += fmt::format(" rank {} on {}", gone[i], ranks[static_cast<size_t>(gone[i])].host);
    }
    return text + others(ranks, gone);
}

std::optional<std::string> silent(const std::vector<RankReport>& ranks, double limit) {
    for (const RankReport& report : ranks)
        if (report.connected && report.silent > limit)
            return fmt::format(
                       "{} has not been heard of for {:.0f} s (stopped, or its host or network is gone); it "
                       "was last heard in: {}",
                       name_of(report, ranks.size()), report.silent, report.activity.text()) +
                   others(ranks, {report.rank});
    return std::nullopt;
}

// GPU operations of one group with the same number but not the same signature.
std::optional<std::string> disagreement(const std::vector<RankReport>& ranks) {
    struct Seen {
        const RankReport* report;
        const OperationActivity* operation;
    };
    std::map<std::pair<std::string, int64_t>, Seen> first;
    for (const RankReport& report : ranks)
        for (const OperationActivity& operation : report.activity.operations) {
            if (!operation.on_gpu || operation.number < 0) continue;  // messages are not counted
            const auto [seen, fresh] =
                first.emplace(std::pair(operation.group, operation.number), Seen{&report, &operation});
            if (fresh || seen->second.operation->signature == operation.signature) continue;
            return fmt::format(
                       "the ranks disagree about the next call: {} is in {}, {} in {}; that is a bug or two "
                       "different programs",
                       name_of(*seen->second.report, ranks.size()), seen->second.operation->text(),
                       name_of(report, ranks.size()), operation.text()) +
                   others(ranks, {});
        }
    return std::nullopt;
}

// A GPU operation that some ranks have waited for too long: the rank that has not come to it yet hangs.
std::optional<std::string> stuck(const std::vector<RankReport>& ranks, double limit) {
    for (const RankReport& report : ranks)
        for (const OperationActivity& operation : report.activity.operations) {
            if (!operation.on_gpu || operation.seconds < limit) continue;
            for (const RankReport& other : ranks) {
                const bool there =
                    std::any_of(other.activity.operations.begin(), other.activity.operations.end(),
                                [&](const OperationActivity& o) {
                                    return o.group == operation.group && o.number >= operation.number;
                                });
                if (!other.connected || there || other.rank == report.rank) continue;
                return fmt::format(
                           "{} hangs: it has not come to {}, for which {} has waited {:.0f} s; it stands in: "
                           "{}",
                           name_of(other, ranks.size()), operation.text(), name_of(report, ranks.size()),
                           operation.seconds, other.activity.text()) +
                       others(ranks, {other.rank});
            }
            return fmt::format(
                       "{} has waited {:.0f} s in {}, which all ranks have begun: a GPU or the network "
                       "between "
                       "the GPUs hangs",
                       name_of(report, ranks.size()), operation.seconds, operation.text()) +
                   others(ranks, {});
        }
    return std::nullopt;
}

std::optional<std::string> troubled(const std::vector<RankReport>& ranks) {
    for (const RankReport& report : ranks)
        if (!report.activity.trouble.empty())
            return fmt::format("{}: {}; it stands in: {}", name_of(report, ranks.size()),
                               report.activity.trouble, report.activity.text());
    return std::nullopt;
}

}  // namespace

std::optional<std::string> verdict(const std::vector<RankReport>& ranks, const Limits& limits) {
    if (auto text = lost(ranks)) return text;
    if (auto text = troubled(ranks)) return text;
    if (auto text = disagreement(ranks)) return text;
    if (auto text = stuck(ranks, limits.communication)) return text;
    return silent(ranks, limits.heartbeat);
}

const Failure& first_cause(const std::vector<Failure>& failures) {
    const Failure& first = *std::min_element(
        failures.begin(), failures.end(), [](const Failure& a, const Failure& b) { return a.time < b.time; });
    const Failure* lowest = &first;
    for (const Failure& failure : failures)
        if (failure.text == first.text && failure.rank < lowest->rank) lowest = &failure;
    return *lowest;
}

std::string failure_text(const std::vector<RankReport>& ranks, const Failure& failure) {
    if (failure.rank < 0) return failure.text;
    const bool communication = failure.status == static_cast<int>(Fault::communication);
    std::string text = name_of(ranks[static_cast<size_t>(failure.rank)], ranks.size()) + ": " + failure.text;
    if (!failure.place.empty() && (communication || failure.status == static_cast<int>(Fault::internal)))
        text += "; it stood in: " + failure.place;
    if (communication) text += others(ranks, {failure.rank});
    return text;
}

}  // namespace levin
