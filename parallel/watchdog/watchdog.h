// Watches over a job: a thread on every rank that notices when another rank dies, hangs, fails, or makes
// another call than the rest, and then ends the process: with the status of that failure, or 4. It talks TCP,
// not MPI, and waits for nobody.
//
// Rank 0 is the judge: every rank tells it twice a second what it does (activity.h), and at once when it
// fails. The judge decides, says which rank failed first, in which collective and where in the program, and
// the others end with it. If the judge itself goes, every other rank sees that, and the first one to get
// there says so.
//
// Seconds without a word until a rank counts as lost: LEVIN_HEARTBEAT_TIMEOUT, 10.
#pragma once

#include <memory>
#include <string>

#include "parallel/communicator.h"

namespace levin {

class Watchdog {
public:
    // Collective over the ranks of the job, more than one. `host` is for messages.
    Watchdog(Communicator& ranks, const std::string& host);
    ~Watchdog();
    Watchdog(const Watchdog&) = delete;
    Watchdog& operator=(const Watchdog&) = delete;

    // This rank ends by itself with `status`: the others shall not call it lost. For status 0 every rank must
    // do so.
    void leave(int status);
    // This rank failed with `text`, now or as last_fall() says, and the job shall end with `status`. The
    // judge hears what else fails meanwhile, prints one message about the first of all failures (a lost rank
    // before any) and ends the job: returns only when there is no judge to be reached, after a few seconds.
    void fail(const std::string& text, int status);
    // Writes the message of a job that ends with `status` where keep_message_in said, if a restart may go on
    // after it; false when one is there already.
    static bool keep_message(const std::string& text, int status);
    // Where the message is kept as well: <folder>/failure.txt. That of an earlier end becomes
    // failure_before.txt.
    static void keep_message_in(const std::string& folder, bool set_aside_old);

private:
    struct Thread;
    std::unique_ptr<Thread> thread_;
};

}  // namespace levin
