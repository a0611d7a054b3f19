#include "trainer/stop_signal.h"

#include <unistd.h>

#include <atomic>
#include <csignal>
#include <thread>

namespace levin {

namespace {

std::atomic<bool> stop_listening{false}, stop_requested{false};

sigset_t stop_signals() {
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGUSR1);
    return signals;
}

void on_signal(int number) {
    if (stop_listening) {
        stop_requested = true;
        return;
    }
    // Nobody listens: end as if there were no handler.
    std::signal(number, SIG_DFL);
    const sigset_t signals = stop_signals();
    pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
    std::raise(number);
}

}  // namespace

void watch_signals() {
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

StopSignal::StopSignal() {
    stop_requested = false;
    stop_listening = true;
}
StopSignal::~StopSignal() { stop_listening = false; }
bool StopSignal::requested() const { return stop_requested; }

}  // namespace levin
