// What this rank is doing: its place in the program and the communication it has in flight. Written by the
// thread that works, read by the watchdog, and told to the other ranks for the message about a failure.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace levin {

// Names what the program does while it lives: Place place("step 17, backward"). Places nest.
class Place {
public:
    explicit Place(std::string text);
    ~Place();
    // The next part of the same.
    void move_to(std::string text);
    Place(const Place&) = delete;
    Place& operator=(const Place&) = delete;
};

// Notes an operation as in flight. `group` names the ranks that take part, `number` counts the calls of that
// group, `signature` is what all must agree on: "all_reduce of 4096 f32". `ended` is asked by the watchdog's
// thread (an operation on a GPU, which nobody waits for); without it end_operation() says so.
uint64_t begin_operation(const std::string& group, int64_t number, const std::string& signature,
                         std::function<bool()> ended = {});
void end_operation(uint64_t id);
// Called when the job is given up, from the watchdog's thread: ends what would keep this process.
void at_emergency(std::function<void()> action);
void run_emergency_actions() noexcept;

struct OperationActivity {
    std::string group, signature;
    int64_t number = 0;
    double seconds = 0;        // in flight
    bool on_gpu = false;       // nobody on the host waits for it
    std::string text() const;  // "all_reduce of 4096 f32, call 12 on world"
};
struct Activity {
    std::string place;
    double seconds = 0;                         // there
    std::string last;                           // the operation begun last
    std::vector<OperationActivity> operations;  // the oldest of each group
    std::string trouble;                        // what a GPU operation failed with

    std::string to_bytes() const;
    static Activity from_bytes(const std::string& bytes);
    // "step 17, backward (for 3 s), in all_reduce of 4096 f32, call 12 on world"
    std::string text() const;
};
Activity current_activity();

// An exception that has left a Place: where the program stood, in words, and for how many seconds it has been
// on its way out. Without a place where there was none.
struct Fall {
    std::string place;
    double seconds = 0;
};
Fall last_fall();

}  // namespace levin
