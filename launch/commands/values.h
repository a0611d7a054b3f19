// Checks of option values whose messages say what was expected. CLI11's own let "nan" pass, and name a range
// by its 300 digits and an enumeration by the numbers behind it.
#pragma once

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <cmath>
#include <limits>
#include <map>
#include <string>
#include <vector>

namespace levin {

// A finite number that `good` accepts; `expected` says which those are, `name` is what --help shows.
template <class Good>
CLI::Validator number_where(const Good& good, const std::string& expected, const std::string& name) {
    return CLI::Validator(
        [=](std::string& text) -> std::string {
            double value = 0;
            const char* end = text.data() + text.size();
            const auto [stop, error] = std::from_chars(text.data(), end, value);
            const bool number = error == std::errc{} && stop == end && std::isfinite(value);
            return number && good(value) ? "" : fmt::format("expected {}, got {}", expected, text);
        },
        name);
}

inline CLI::Validator positive() {
    return number_where([](double value) { return value > 0; }, "a number above 0", "POSITIVE");
}

inline CLI::Validator not_negative() {
    return number_where([](double value) { return value >= 0; }, "a number, 0 or more", "NONNEGATIVE");
}

inline CLI::Validator within(double least, double most) {
    const std::string range = fmt::format("{} to {}", least, most);
    return number_where([=](double value) { return value >= least && value <= most; },
                        "a number from " + range, range);
}

// One of the names, which becomes its value. An option of an enum type takes the number behind it from there.
template <class Enum>
CLI::Validator one_of(const std::map<std::string, Enum>& values) {
    std::vector<std::string> names;
    for (const auto& [name, value] : values) names.push_back(name);
    return CLI::Validator(
        [=](std::string& text) -> std::string {
            const auto found = values.find(text);
            if (found == values.end())
                return fmt::format("expected {}; got {}", fmt::join(names, " or "), text);
            text = std::to_string(static_cast<int>(found->second));
            return "";
        },
        fmt::format("{}", fmt::join(names, "|")));
}

}  // namespace levin
