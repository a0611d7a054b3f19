#include "trainer/stop_signal.h"

#include <unistd.h>

#include <atomic>
#include <csignal>
#include <thread>

namespace levin {

namespace {

std::atomic<bool> ends_process{true}, in_loop{false}, stop_requested{false};

sigset_t stop_signals() {
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGUSR1);
    return signals;
}

void on_signal(int number) {
    const bool again = stop_requested.exchange(true) && number == SIGINT && !in_loop;
    if (!ends_process && !again) return;
    // End as if there were no handler.
    std::signal(number, SIG_DFL);
    const sigset_t signals = stop_signals();
    pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
    std::raise(number);
}

}  // namespace

void watch_signals(SignalMeaning meaning) {
    ends_process = meaning == SignalMeaning::end;
    const sigset_t signals = stop_signals();
    for (const int number : {SIGTERM, SIGINT, SIGUSR1}) {
        struct sigaction action {
        }, before{};
        action.sa_handler = on_signal;
        action.sa_flags = SA_RESTART;
        sigaction(number, &action, &before);
        if (before.sa_handler == SIG_IGN) sigaction(number, &before, nullptr);  // as nohup wants it
    }
    // Threads started from here on inherit the mask. Those that libraries start while they are loaded
    // (OpenBLAS) do not; they never run oneDNN's kernels, so a handler does no harm there.
    pthread_sigmask(SIG_BLOCK, &signals, nullptr);
    std::thread([signals] {
        pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
        for (;;) pause();
    }).detach();
}

StopSignal::StopSignal() { in_loop = true; }
StopSignal::~StopSignal() { in_loop = false; }
bool StopSignal::requested() const { return stop_requested; }

}  // namespace levin
