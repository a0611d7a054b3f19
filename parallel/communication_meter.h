// How long communication takes, by communicator, and how much of that nothing hides.
//
// Busy is the time in which at least one operation of a communicator was under way. Exposed is the time the
// computation stood still for it: over MPI what the program spends inside communication calls (it moves the
// messages and forms the sums itself), over NCCL the time for which a tensor's stream waits at the end of
// Work::wait(). The latter comes from events that the GPU records and that are read once they have happened:
// nobody waits for them. Kernels slowed down by NCCL's own kernels beside them are not counted.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "kernels/base/stream.h"

namespace levin {

struct CommunicationTime {
    double busy_ms = 0, exposed_ms = 0;
};

// Communicators report to the one that lives. Used by the thread that communicates.
class CommunicationMeter {
public:
    CommunicationMeter();
    ~CommunicationMeter();
    CommunicationMeter(const CommunicationMeter&) = delete;
    CommunicationMeter& operator=(const CommunicationMeter&) = delete;
    // Null while nobody measures.
    static CommunicationMeter* current();

    // By name of the communicator, what the operations on tensors of such a device took since the last call.
    // Of a GPU, what has ended by now; the rest comes with the next call.
    std::map<std::string, CommunicationTime> take(DeviceType type);

    // An operation of the host is under way while the result lives.
    std::shared_ptr<void> begin(const std::string& communicator);
    // Asked later, in the order of one communicator's calls, until it knows.
    using Later = std::function<std::optional<CommunicationTime>()>;
    void add_later(const std::string& communicator, Later time);

private:
    friend class ExposedTime;
    struct State;
    std::shared_ptr<State> state_;
};

// Counts its life as exposed, unless it lives inside another one.
class ExposedTime {
public:
    explicit ExposedTime(const std::string& communicator);
    ~ExposedTime();
    ExposedTime(const ExposedTime&) = delete;
    ExposedTime& operator=(const ExposedTime&) = delete;

private:
    struct Running;
    std::unique_ptr<Running> running_;  // null: not counted
};

}  // namespace levin
