#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "checkpoint/safetensors.h"
#include "kernels/base/error.h"

namespace levin {

namespace {

using Json = nlohmann::json;

// Bits of one element; 0: no such type.
uint64_t bits_of(std::string_view type) {
    static const std::map<std::string_view, uint64_t> bits{
        {"F64", 64}, {"I64", 64},  {"U64", 64}, {"F32", 32},    {"I32", 32},    {"U32", 32},
        {"F16", 16}, {"BF16", 16}, {"I16", 16}, {"U16", 16},    {"F8_E4M3", 8}, {"F8_E5M2", 8},
        {"I8", 8},   {"U8", 8},    {"BOOL", 8}, {"F8_E8M0", 8}, {"C64", 64}};
    const auto found = bits.find(type);
    return found == bits.end() ? 0 : found->second;
}

// Reads the header event by event, so that what it cannot be (deep nesting, a key twice, floats for sizes) is
// refused as it comes and nothing larger than the header itself is ever built.
class HeaderParser : public nlohmann::json_sax<Json> {
public:
    explicit HeaderParser(const std::string& where) : where_(where) {}

    SafetensorsHeader header;

    bool start_object(size_t) override {
        switch (state_) {
            case State::start:
                state_ = State::root;
                return true;
            case State::value_of_root:
                if (name_ == "__metadata__") {
                    state_ = State::metadata;
                    return true;
                }
                state_ = State::tensor;
                entry_ = {};
                entry_.name = name_;
                seen_type_ = seen_shape_ = seen_offsets_ = false;
                return true;
            default:
                return unexpected("an object");
        }
    }
    bool key(std::string& key) override {
        switch (state_) {
            case State::root:
                if (!names_.insert(key).second) fail(Fault::input, where_, "the key '{}' appears twice", key);
                name_ = key;
                state_ = State::value_of_root;
                return true;
            case State::metadata:
                if (header.metadata.count(key))
                    fail(Fault::input, where_, "the key '{}' appears twice in __metadata__", key);
                metadata_key_ = key;
                state_ = State::value_of_metadata;
                return true;
            case State::tensor:
                if (key == "dtype") return once(seen_type_, key, State::type);
                if (key == "shape") return once(seen_shape_, key, State::before_shape);
                if (key == "data_offsets") return once(seen_offsets_, key, State::before_offsets);
                fail(Fault::input, where_, "tensor '{}' has the unknown field '{}'", name_, key);
            default:
                return unexpected("a key");
        }
    }
    bool string(std::string& value) override {
        if (state_ == State::value_of_metadata) {
            header.metadata[metadata_key_] = value;
            state_ = State::metadata;
            return true;
        }
        if (state_ != State::type) return unexpected("text");
        entry_.type = value;
        state_ = State::tensor;
        return true;
    }
    bool start_array(size_t) override {
        if (state_ == State::before_shape)
            state_ = State::shape;
        else if (state_ == State::before_offsets)
            state_ = State::offsets;
        else
            return unexpected("a list");
        return true;
    }
    bool number_unsigned(uint64_t value) override {
        if (state_ == State::shape) {
            if (value > static_cast<uint64_t>(INT64_MAX) || entry_.shape.size() >= 16)
                fail(Fault::input, where_, "tensor '{}' has an impossible shape: extent {} in axis {}", name_,
                     value, entry_.shape.size());
            entry_.shape.push_back(static_cast<int64_t>(value));
            return true;
        }
        if (state_ != State::offsets) return unexpected("a number");
        offsets_.push_back(value);
        if (offsets_.size() > 2)
            fail(Fault::input, where_, "tensor '{}' has more than two data_offsets", name_);
        return true;
    }
    bool end_array() override {
        if (state_ == State::offsets) {
            if (offsets_.size() != 2) fail(Fault::input, where_, "tensor '{}' needs two data_offsets", name_);
            entry_.begin = offsets_[0];
            entry_.end = offsets_[1];
            offsets_.clear();
        }
        state_ = State::tensor;
        return true;
    }
    bool end_object() override {
        if (state_ == State::tensor) {
            if (!seen_type_ || !seen_shape_ || !seen_offsets_)
                fail(Fault::input, where_, "tensor '{}' lacks dtype, shape or data_offsets", name_);
            header.entries.push_back(std::move(entry_));
            state_ = State::root;
        } else if (state_ == State::metadata) {
            state_ = State::root;
        } else {
            state_ = State::done;
        }
        return true;
    }
    bool null() override { return unexpected("null"); }
    bool boolean(bool) override { return unexpected("true or false"); }
    bool number_integer(int64_t value) override {
        fail(Fault::input, where_, "the header holds the negative number {} (at '{}')", value, name_);
    }
    bool number_float(double, const std::string& text) override {
        fail(Fault::input, where_, "the header holds {} (at '{}') where a whole number below 2^64 belongs",
             text, name_);
    }
    bool binary(Json::binary_t&) override { return unexpected("binary data"); }
    bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception& error) override {
        fail(Fault::input, where_, "the header is no valid JSON at its byte {}: {}", position, error.what());
    }

private:
    enum class State {
        start,
        root,
        value_of_root,
        metadata,
        value_of_metadata,
        tensor,
        type,
        before_shape,
        shape,
        before_offsets,
        offsets,
        done
    };

    bool once(bool& seen, const std::string& key, State next) {
        if (seen) fail(Fault::input, where_, "tensor '{}' has the field '{}' twice", name_, key);
        seen = true;
        state_ = next;
        return true;
    }
    bool unexpected(const char* what) {
        fail(Fault::input, where_, "the header holds {} where it does not belong (at '{}')", what, name_);
    }

    const std::string& where_;
    State state_ = State::start;
    std::set<std::string> names_;
    std::string name_, metadata_key_;
    SafetensorsEntry entry_;
    std::vector<uint64_t> offsets_;
    bool seen_type_ = false, seen_shape_ = false, seen_offsets_ = false;
};

}  // namespace

SafetensorsHeader parse_safetensors_header(std::string_view text, uint64_t data_bytes,
                                           const std::string& where) {
    LEVIN_REQUIRE(!text.empty() && text.front() == '{', where,
                  "the header does not start with '{{': not a safetensors file");
    HeaderParser parser(where);
    Json::sax_parse(text.begin(), text.end(), &parser);
    SafetensorsHeader header = std::move(parser.header);
    for (const auto& entry : header.entries) {
        uint64_t bits = bits_of(entry.type);
        LEVIN_REQUIRE(bits != 0, where, "tensor '{}' has the unknown type '{}'", entry.name, entry.type);
        bool overflow = false;
        for (const int64_t extent : entry.shape)
            overflow |= __builtin_mul_overflow(bits, static_cast<uint64_t>(extent), &bits);
        LEVIN_REQUIRE(!overflow, where, "tensor '{}' of shape {} is too large for any file", entry.name,
                      to_string(entry.shape));
        LEVIN_REQUIRE(entry.begin <= entry.end && entry.end <= data_bytes, where,
                      "tensor '{}' claims bytes {} to {} of {}: truncated or corrupt", entry.name,
                      entry.begin, entry.end, data_bytes);
        LEVIN_REQUIRE(entry.end - entry.begin == bits / 8, where,
                      "tensor '{}' of type {} and shape {} takes {} bytes, but its data_offsets span {}",
                      entry.name, entry.type, to_string(entry.shape), bits / 8, entry.end - entry.begin);
    }
    std::sort(header.entries.begin(), header.entries.end(), [](const auto& a, const auto& b) {
        return std::tie(a.begin, a.end) < std::tie(b.begin, b.end);
    });
    uint64_t at = 0;
    for (const auto& entry : header.entries) {
        LEVIN_REQUIRE(entry.begin == at, where,
                      "tensor '{}' starts at byte {}, but the one before it ends at {}: {}", entry.name,
                      entry.begin, at, entry.begin < at ? "they overlap" : "there is a hole");
        at = entry.end;
    }
    LEVIN_REQUIRE(at == data_bytes, where, "the tensors end at byte {} of {}: the file has {} bytes too many",
                  at, data_bytes, data_bytes - at);
    return header;
}

}  // namespace levin
