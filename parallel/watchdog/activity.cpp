#include "parallel/watchdog/activity.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <list>
#include <mutex>
#include <sstream>
#include <thread>

namespace levin {

namespace {

using Clock = std::chrono::steady_clock;

struct Flying {
    uint64_t id;
    std::string group, signature;
    int64_t number;
    Clock::time_point start;
    std::function<bool()> ended;
};

// Lives until the process ends: the watchdog's thread may outlive static destructors.
struct State {
    std::mutex mutex;
    std::vector<std::string> places;
    Clock::time_point moved = Clock::now();
    std::list<Flying> flying;
    uint64_t next = 1;
    std::string last, trouble;
    std::string fallen_from;  // where an exception began to leave places, until one is entered again
    Clock::time_point fallen;
    std::vector<std::function<void()>> emergency;

    std::string joined_places() const {
        std::string text;
        for (const std::string& place : places) text += (text.empty() ? "" : ", ") + place;
        return text;
    }
    void sweep() {
        flying.remove_if([this](const Flying& operation) {
            if (!operation.ended) return false;
            try {
                return operation.ended();
            } catch (const std::exception& error) {
                if (trouble.empty()) trouble = error.what();
                return false;
            }
        });
    }
};
State& state() {
    static auto* all = new State;
    return *all;
}

double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

std::string named(const std::string& signature, int64_t number, const std::string& group) {
    return number < 0 ? fmt::format("{} on {}", signature, group)
                      : fmt::format("{}, call {} on {}", signature, number, group);
}

std::string one_line(std::string text) {
    for (char& c : text)
        if (c == '\n' || c == '\t') c = ' ';
    return text;
}

}  // namespace

Place::Place(std::string text) {
    State& s = state();
    const std::lock_guard lock(s.mutex);
    s.places.push_back(std::move(text));
    s.moved = Clock::now();
    s.fallen_from.clear();
}
void Place::move_to(std::string text) {
    State& s = state();
    const std::lock_guard lock(s.mutex);
    s.places.back() = std::move(text);
    s.moved = Clock::now();
}
Place::~Place() {
    State& s = state();
    const std::lock_guard lock(s.mutex);
    if (std::uncaught_exceptions() > 0 && s.fallen_from.empty()) {
        s.fallen_from = s.joined_places();
        s.fallen = Clock::now();
    }
    s.places.pop_back();
    s.moved = Clock::now();
}

uint64_t begin_operation(const std::string& group, int64_t number, const std::string& signature,
                         std::function<bool()> ended) {
    constexpr size_t kMany = 256;  // GPU operations leave the list only when somebody looks
    State& s = state();
    const std::lock_guard lock(s.mutex);
    if (s.flying.size() >= kMany && ended) s.sweep();
    s.last = named(signature, number, group);
    s.flying.push_back({s.next, group, signature, number, Clock::now(), std::move(ended)});
    return s.next++;
}

void end_operation(uint64_t id) {
    State& s = state();
    const std::lock_guard lock(s.mutex);
    s.flying.remove_if([id](const Flying& operation) { return operation.id == id; });
}

void at_emergency(std::function<void()> action) {
    State& s = state();
    const std::lock_guard lock(s.mutex);
    s.emergency.push_back(std::move(action));
}

void run_emergency_actions() noexcept {
    // They may hang where the GPU does: they get a second, and the end of the process takes care of the rest.
    std::thread([] {
        std::vector<std::function<void()>> actions;
        {
            State& s = state();
            const std::lock_guard lock(s.mutex);
            actions = s.emergency;
        }
        for (const auto& action : actions) action();
    }).detach();
    std::this_thread::sleep_for(std::chrono::milliseconds(state().emergency.empty() ? 0 : 1000));
}

std::string OperationActivity::text() const { return named(signature, number, group); }

Activity current_activity() {
    State& s = state();
    const std::lock_guard lock(s.mutex);
    s.sweep();
    Activity activity;
    activity.place = s.joined_places();
    activity.seconds = since(s.moved);
    activity.last = s.last;
    activity.trouble = s.trouble;
    for (const Flying& operation : s.flying) {
        const bool known =
            std::any_of(activity.operations.begin(), activity.operations.end(),
                        [&](const OperationActivity& o) { return o.group == operation.group; });
        if (!known)
            activity.operations.push_back({operation.group, operation.signature, operation.number,
                                           since(operation.start), static_cast<bool>(operation.ended)});
    }
    return activity;
}

Fall last_fall() {
    State& s = state();
    const std::lock_guard lock(s.mutex);
    if (s.fallen_from.empty()) return {};
    return {s.last.empty() ? s.fallen_from : s.fallen_from + ", after " + s.last, since(s.fallen)};
}

std::string Activity::to_bytes() const {
    std::string bytes =
        fmt::format("{}\n{}\n{}\n{}\n", one_line(place), seconds, one_line(last), one_line(trouble));
    for (const OperationActivity& o : operations)
        bytes += fmt::format("{}\t{}\t{}\t{}\t{}\n", o.number, o.seconds, o.on_gpu ? 1 : 0, one_line(o.group),
                             one_line(o.signature));
    return bytes;
}

Activity Activity::from_bytes(const std::string& bytes) {
    Activity activity;
    std::istringstream stream(bytes);
    std::string seconds;
    std::getline(stream, activity.place);
    std::getline(stream, seconds);
    std::istringstream(seconds) >> activity.seconds;
    std::getline(stream, activity.last);
    std::getline(stream, activity.trouble);
    for (std::string line; std::getline(stream, line);) {
        OperationActivity o;
        int on_gpu = 0;
        std::istringstream fields(line);
        fields >> o.number >> o.seconds >> on_gpu >> std::ws;
        o.on_gpu = on_gpu != 0;
        std::getline(fields, o.group, '\t');
        std::getline(fields, o.signature);
        activity.operations.push_back(std::move(o));
    }
    return activity;
}

std::string Activity::text() const {
    std::string text = place.empty() ? "outside of any named place" : place;
    text += fmt::format(" (for {:.0f} s)", seconds);
    if (!operations.empty())
        text += ", in " + operations[0].text();
    else if (!last.empty())
        text += ", after " + last;
    return text;
}

}  // namespace levin
