// SIGTERM and SIGINT as a wish to stop, asked for between steps.
//
// No handler ever runs on a thread that computes: kernels that oneDNN 2.6 generates for sgemm keep data below
// the stack pointer, where the frame of a signal handler overwrites it (found by sending signals to `levin
// bench gemm`). Both signals are blocked in all threads, and one thread waits for them.
#pragma once

namespace levin {

// First thing in main(), before any thread is started. Until a StopSignal lives the two signals end the
// process as usual.
void watch_signals();

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
