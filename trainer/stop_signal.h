// SIGTERM and SIGINT as a wish to stop, asked for between steps.
#pragma once

namespace levin {

// While one lives, the two signals no longer end the process: requested() becomes true. One at a time.
class StopSignal {
public:
    StopSignal();
    ~StopSignal();
    StopSignal(const StopSignal&) = delete;
    StopSignal& operator=(const StopSignal&) = delete;
    bool requested() const;
};

}  // namespace levin
