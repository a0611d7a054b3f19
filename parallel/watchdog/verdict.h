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

// One of the failures that the judge has heard of.
struct Failure {
    double time = 0;    // when it happened, in seconds on the judge's clock
    int rank = -1;      // that failed by itself; -1: the judge found it
    int status = 4;     // that the job shall end with
    std::string text;   // what the rank says
    std::string place;  // where it stood; may be empty
};

// The one that the others may be consequences of: the first. Of ranks that said the same (a mistake that all
// make alike) the lowest. Needs at least one.
const Failure& first_cause(const std::vector<Failure>& failures);
// "rank 2 of 3 on b: .."; for what is nobody's plain mistake also where it stood, and where the others do if
// it is about communication.
std::string failure_text(const std::vector<RankReport>& ranks, const Failure& failure);

}  // namespace levin
