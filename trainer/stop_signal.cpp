#include "trainer/stop_signal.h"

#include <atomic>
#include <csignal>

namespace levin {

namespace {

std::atomic<bool> stop_requested{false};
struct sigaction previous_term, previous_int;

void on_signal(int) { stop_requested = true; }

}  // namespace

StopSignal::StopSignal() {
    stop_requested = false;
    struct sigaction action {};
    action.sa_handler = on_signal;
    action.sa_flags = SA_RESTART;  // a read or a collective under way goes on
    sigaction(SIGTERM, &action, &previous_term);
    sigaction(SIGINT, &action, &previous_int);
}

StopSignal::~StopSignal() {
    sigaction(SIGTERM, &previous_term, nullptr);
    sigaction(SIGINT, &previous_int, nullptr);
}

bool StopSignal::requested() const { return stop_requested; }

}  // namespace levin
