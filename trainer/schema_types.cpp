#include "trainer/schema_types.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "data/utf8.h"

namespace levin {

std::string place_of(const std::string& file, const YAML::Mark& mark) {
    if (mark.is_null()) return file;
    return fmt::format("{}:{}:{}", file, mark.line + 1, mark.column + 1);
}

ConfigValue ConfigValue::at(const YAML::Node& child) const {
    ConfigValue result = *this;
    result.node.reset(child);
    if (!file.empty()) result.where = place_of(file, child.Mark());
    return result;
}

namespace schema_types {
namespace {

std::string describe(const YAML::Node& node) {
    switch (node.Type()) {
        case YAML::NodeType::Scalar:
            return fmt::format("\"{}\"", node.Scalar());
        case YAML::NodeType::Sequence:
            return node.size() == 0 ? "an empty list" : "a list";
        case YAML::NodeType::Map:
            return "a mapping";
        default:
            return "empty";
    }
}

// The whole of `text` as a number; false when something is left over or it does not fit.
template <class T>
bool parse_number(std::string_view text, T& value) {
    if (!text.empty() && text.front() == '+') text.remove_prefix(1);
    const char* end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data(), end, value);
    return error == std::errc{} && stop == end && !text.empty();
}

}  // namespace

void wrong_value(const ConfigValue& value, const std::string& expected, const std::string& example) {
    fail(Fault::input, value.where, "{} is {}; expected {}, for example `{}: {}`", value.key,
         describe(value.node), expected, value.key, example);
}

int64_t read_integer(const ConfigValue& value, IntegerRange range, const std::string& example) {
    int64_t number = 0;
    const std::string expected = "an integer, " + to_text(range);
    if (!value.node.IsScalar() || !parse_number(value.node.Scalar(), number))
        wrong_value(value, expected, example);
    if (number < range.least || number > range.most) wrong_value(value, expected, example);
    return number;
}

double read_real(const ConfigValue& value, RealRange range, const std::string& example) {
    double number = 0;
    const std::string expected = "a number, " + to_text(range);
    if (!value.node.IsScalar() || !parse_number(value.node.Scalar(), number) || !std::isfinite(number))
        wrong_value(value, expected, example);
    const bool low = range.least_open ? number <= range.least : number < range.least;
    const bool high = range.most_open ? number >= range.most : number > range.most;
    if (low || high) wrong_value(value, expected, example);
    return number;
}

bool read_boolean(const ConfigValue& value, const std::string& example) {
    if (value.node.IsScalar()) {
        if (value.node.Scalar() == "true") return true;
        if (value.node.Scalar() == "false") return false;
    }
    wrong_value(value, "true or false", example);
}

namespace {

// A text as the run's files can hold it: YAML and protocol buffers know UTF-8 only, and file names end at a
// NUL.
std::string scalar_text(const ConfigValue& value) {
    const std::string text = value.node.Scalar();
    const size_t good = std::min(valid_utf8_prefix(text), text.find('\0'));
    LEVIN_REQUIRE(
        good >= text.size(), value.where,
        "{} has the byte 0x{:02x} after \"{}\", which is no text in UTF-8; save the file as UTF-8, or take "
        "the byte out",
        value.key, static_cast<unsigned>(static_cast<unsigned char>(text[good])), text.substr(0, good));
    return text;
}

}  // namespace

std::string read_text(const ConfigValue& value, const std::string& example) {
    if (value.node.IsNull()) return "";
    if (!value.node.IsScalar()) wrong_value(value, "a text", example);
    return scalar_text(value);
}

namespace {

DataSource read_source(const ConfigValue& value, const std::string& example) {
    const std::string expected = "the PREFIX of a token shard or {prefix: PREFIX, weight: NUMBER}";
    DataSource source;
    if (value.node.IsScalar()) {
        source.prefix = scalar_text(value);
    } else if (value.node.IsMap()) {
        for (const auto& item : value.node) {
            const std::string name = item.first.IsScalar() ? item.first.Scalar() : "?";
            if (name == "prefix" && item.second.IsScalar()) {
                source.prefix = scalar_text(value.at(item.second));
            } else if (name == "weight") {
                source.weight = read_real(value.at(item.second), {.least_open = true}, example);
            } else {
                fail(Fault::input, value.file.empty() ? value.where : place_of(value.file, item.first.Mark()),
                     "{} has an element with the key \"{}\"; expected {}", value.key, name, expected);
            }
        }
    }
    if (source.prefix.empty()) wrong_value(value, expected, example);
    return source;
}

}  // namespace

std::vector<DataSource> read_sources(const ConfigValue& value, const std::string& example) {
    std::vector<DataSource> sources;
    if (value.node.IsNull() || (value.node.IsScalar() && value.node.Scalar().empty())) return sources;
    if (value.node.IsSequence()) {
        for (const auto& child : value.node) sources.push_back(read_source(value.at(child), example));
    } else {
        sources.push_back(read_source(value, example));
    }
    return sources;
}

std::string to_text(IntegerRange range) {
    if (range.most >= int64_t{1} << 40) return fmt::format("{} or more", range.least);
    return fmt::format("{} to {}", range.least, range.most);
}

std::string to_text(RealRange range) {
    const std::string least =
        range.least_open ? fmt::format("above {}", range.least) : fmt::format("{} or more", range.least);
    if (std::isinf(range.most)) return least;
    if (!range.least_open && !range.most_open) return fmt::format("{} to {}", range.least, range.most);
    return fmt::format("{}, {} {}", least, range.most_open ? "below" : "at most", range.most);
}

std::string write_real(double value) {
    std::string text = fmt::format("{}", value);  // the shortest text that reads back as the same double
    if (text.find('.') != std::string::npos) return text;
    // YAML 1.1 readers take a number without a point for an integer or a text.
    const size_t exponent = text.find('e');
    if (exponent == std::string::npos) return text + ".0";
    return text.substr(0, exponent) + ".0" + text.substr(exponent);
}

std::string write_text(const std::string& value) {
    std::string text = "\"";
    for (const char c : value) {
        if (c == '"' || c == '\\') {
            text += '\\';
            text += c;
        } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
            text += fmt::format("\\x{:02x}", static_cast<unsigned>(static_cast<unsigned char>(c)));
        } else {
            text += c;
        }
    }
    return text + "\"";
}

std::string write_sources(const std::vector<DataSource>& sources) {
    std::vector<std::string> items;
    for (const DataSource& source : sources) {
        const std::string prefix = write_text(source.prefix);
        items.push_back(source.weight == 0
                            ? prefix
                            : fmt::format("{{prefix: {}, weight: {}}}", prefix, write_real(source.weight)));
    }
    return fmt::format("[{}]", fmt::join(items, ", "));
}

}  // namespace schema_types
}  // namespace levin
