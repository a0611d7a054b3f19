// The one exception type of levin. A message reads "[where] what happened, what was expected, what to do".
#pragma once

#include <fmt/core.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace levin {

// The value is the exit status of the program (launch/levin.cpp).
enum class Fault : int {
    internal = 1,       // anything else: a bug, a full disk, a missing device
    input = 2,          // bad configuration, file or argument: the user can mend it
    numbers = 3,        // training stopped by NaN or infinity
    communication = 4,  // a rank died, hung or disagreed
};

class Error : public std::runtime_error {
public:
    Error(Fault fault, const std::string& where, const std::string& what)
        : std::runtime_error("[" + where + "] " + what), fault_(fault) {}
    Fault fault() const { return fault_; }
    int exit_status() const { return static_cast<int>(fault_); }

private:
    Fault fault_;
};

// Throws Error. `where` is the room or file the user knows, e.g. "config", "data", "safetensors model.st".
template <class... Args>
[[noreturn]] void fail(Fault fault, const std::string& where, fmt::format_string<Args...> format,
                       Args&&... args) {
    throw Error(fault, where, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace levin

// Bad input from outside: LEVIN_REQUIRE(heads > 0, "config", "model.num_heads is {}, must be positive",
// heads);
#define LEVIN_REQUIRE(condition, where, ...)                                        \
    do {                                                                            \
        if (!(condition)) ::levin::fail(::levin::Fault::input, where, __VA_ARGS__); \
    } while (0)

// A broken promise inside levin (wrong shape or dtype handed to an op): a bug, never the user's fault.
#define LEVIN_CHECK(condition, where, ...)                                             \
    do {                                                                               \
        if (!(condition)) ::levin::fail(::levin::Fault::internal, where, __VA_ARGS__); \
    } while (0)
