// What the watchdog of rank 0 decides from what all ranks told it. No clocks and no sockets: a rule on
// values.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "parallel/watchdog/activity.h"

namespace levin {

struct RankReport {
    int rank = 0;
    std::string host;
    bool connected = false, lost = false;  // lost: its connection ended without a word
    double silent = 0;                     // seconds since it was heard
    Activity activity;                     // as it was last told
};

struct Limits {
    double heartbeat = 10;        // seconds of silence
    double communication = 1800;  // seconds that an operation on GPUs may take
};

// The message about the rank that failed; nothing while all is well.
std::optional<std::string> verdict(const std::vector<RankReport>& ranks, const Limits& limits);
// `accusation`, as rank `accuser` made it, with where all ranks stood.
std::string accusation_text(const std::vector<RankReport>& ranks, int accuser, const std::string& accusation);

}  // namespace levin
