// SIGTERM, SIGINT and SIGUSR1 as a wish to stop, asked for between steps. The last is the one that mpirun and
// Slurm hand on to the ranks of every host.
//
// No handler ever runs on a thread that computes: kernels that oneDNN 2.6 generates for sgemm keep data below
// the stack pointer, where the frame of a signal handler overwrites it (found by sending signals to `levin
// bench gemm`). They are blocked in all threads, and one thread waits for them.
#pragma once

namespace levin {

enum class SignalMeaning { end, stop };

// First thing in main(), before any thread is started. SignalMeaning::end: these signals end the process as
// usual. SignalMeaning::stop: they are a wish from the first moment on, also while the ranks find each other
// and the checkpoint is read; but outside of the loop a second SIGINT ends the process.
void watch_signals(SignalMeaning meaning);

// The loop that heeds the wish, which may have come before. One at a time.
class StopSignal {
public:
    StopSignal();
    ~StopSignal();
    StopSignal(const StopSignal&) = delete;
    StopSignal& operator=(const StopSignal&) = delete;
    bool requested() const;
};

}  // namespace levin
