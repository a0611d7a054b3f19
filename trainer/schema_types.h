// The types a configuration key can have. Each maker returns a SchemaKey that reads a value strictly (no
// silent conversion), names the value and an example when it is wrong, and writes it so that reading gives
// the same bits.
#pragma once

#include <fmt/format.h>

#include <limits>

#include "kernels/base/error.h"
#include "trainer/schema.h"

namespace levin::schema_types {

struct IntegerRange {
    int64_t least = 0, most = std::numeric_limits<int64_t>::max();
};
struct RealRange {
    double least = 0, most = std::numeric_limits<double>::infinity();
    bool least_open = false, most_open = false;
};

// `expected` completes "expected .."; the message also shows the value found and `key.example`.
[[noreturn]] void wrong_value(const ConfigValue& value, const std::string& expected,
                              const std::string& example);

int64_t read_integer(const ConfigValue& value, IntegerRange range, const std::string& example);
double read_real(const ConfigValue& value, RealRange range, const std::string& example);
bool read_boolean(const ConfigValue& value, const std::string& example);
std::string read_text(const ConfigValue& value, const std::string& example);
std::vector<DataSource> read_sources(const ConfigValue& value, const std::string& example);

std::string to_text(IntegerRange range);
std::string to_text(RealRange range);
std::string write_real(double value);
std::string write_text(const std::string& value);
std::string write_sources(const std::vector<DataSource>& sources);

template <class E>
std::string choices() {
    std::string text;
    for (const auto& entry : enum_names<E>()) text += (text.empty() ? "" : ", ") + std::string(entry.name);
    return text;
}

template <class E>
E read_choice(const ConfigValue& value, const std::string& example) {
    E result{};
    if (!value.node.IsScalar() || !enum_from_name(value.node.Scalar(), result))
        wrong_value(value, "one of " + choices<E>(), example);
    return result;
}

// `field` is a generic lambda: Config& -> the field, const Config& -> the const field.
template <class Field>
SchemaKey integer(Field field, IntegerRange range, std::string documentation) {
    SchemaKey key;
    key.type = "integer";
    key.range = to_text(range);
    key.documentation = std::move(documentation);
    key.write = [field](const Config& config) { return fmt::format("{}", field(config)); };
    key.example = key.write(Config{});
    key.read = [=, example = key.example](Config& config, const ConfigValue& value) {
        field(config) = read_integer(value, range, example);
    };
    return key;
}

template <class Field>
SchemaKey real(Field field, RealRange range, std::string documentation) {
    SchemaKey key;
    key.type = "number";
    key.range = to_text(range);
    key.documentation = std::move(documentation);
    key.write = [field](const Config& config) { return write_real(field(config)); };
    key.example = key.write(Config{});
    key.read = [=, example = key.example](Config& config, const ConfigValue& value) {
        field(config) = read_real(value, range, example);
    };
    return key;
}

template <class Field>
SchemaKey boolean(Field field, std::string documentation) {
    SchemaKey key;
    key.type = "true or false";
    key.documentation = std::move(documentation);
    key.write = [field](const Config& config) { return std::string(field(config) ? "true" : "false"); };
    key.example = key.write(Config{});
    key.read = [=, example = key.example](Config& config, const ConfigValue& value) {
        field(config) = read_boolean(value, example);
    };
    return key;
}

template <class Field>
SchemaKey text(Field field, std::string example, std::string documentation) {
    SchemaKey key;
    key.type = "text";
    key.documentation = std::move(documentation);
    key.example = std::move(example);
    key.plain_text = true;
    key.write = [field](const Config& config) { return write_text(field(config)); };
    key.read = [=, example = key.example](Config& config, const ConfigValue& value) {
        field(config) = read_text(value, example);
    };
    return key;
}

template <class E, class Field>
SchemaKey choice(Field field, std::string documentation) {
    SchemaKey key;
    key.type = "one of `" +
               fmt::format("{}", fmt::join(
                                     [] {
                                         std::vector<std::string_view> names;
                                         for (const auto& entry : enum_names<E>())
                                             names.push_back(entry.name);
                                         return names;
                                     }(),
                                     "`, `")) +
               "`";
    key.documentation = std::move(documentation);
    key.write = [field](const Config& config) { return enum_name(field(config)); };
    key.example = key.write(Config{});
    key.read = [=, example = key.example](Config& config, const ConfigValue& value) {
        field(config) = read_choice<E>(value, example);
    };
    return key;
}

template <class Field>
SchemaKey sources(Field field, std::string documentation) {
    SchemaKey key;
    key.type = "PREFIX, a list of PREFIX, or a list of `{prefix: PREFIX, weight: 0.3}`";
    key.documentation = std::move(documentation);
    key.example = "[runs/data/books, runs/data/web]";
    key.plain_text = true;
    key.write = [field](const Config& config) { return write_sources(field(config)); };
    key.read = [=, example = key.example](Config& config, const ConfigValue& value) {
        field(config) = read_sources(value, example);
    };
    return key;
}

}  // namespace levin::schema_types
