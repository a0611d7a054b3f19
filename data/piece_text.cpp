// What a worker does with a piece before it is tokenized: clean its UTF-8, take the text out of its JSON.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "data/document_reader.h"
#include "data/utf8.h"
#include "kernels/base/error.h"

namespace levin {

namespace {

// Takes one string of the outermost object and lets the rest pass without building it.
class TextOfKey final : public nlohmann::json_sax<nlohmann::json> {
public:
    TextOfKey(const std::string& wanted, std::string& text) : wanted_(wanted), text_(text) {}

    bool is_object = false, found = false, other_type = false;
    std::string keys, error;

    bool null() override { return other(); }
    bool boolean(bool) override { return other(); }
    bool number_integer(number_integer_t) override { return other(); }
    bool number_unsigned(number_unsigned_t) override { return other(); }
    bool number_float(number_float_t, const string_t&) override { return other(); }
    bool binary(binary_t&) override { return other(); }
    bool string(string_t& value) override {
        if (!at_wanted()) return true;
        text_ = std::move(value);
        found = true;
        return true;
    }
    bool start_object(std::size_t) override {
        if (depth_ == 0) is_object = true;
        other();
        ++depth_;
        return true;
    }
    bool end_object() override { return --depth_, true; }
    bool start_array(std::size_t) override {
        other();
        ++depth_;
        return true;
    }
    bool end_array() override { return --depth_, true; }
    bool key(string_t& name) override {
        if (depth_ != 1) return true;
        at_key_ = name == wanted_;
        if (keys.size() < 200) keys += (keys.empty() ? "" : ", ") + name;
        return true;
    }
    bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception& problem) override {
        error = problem.what();
        return false;
    }

private:
    bool at_wanted() const { return depth_ == 1 && is_object && at_key_; }
    bool other() {
        if (at_wanted()) other_type = true;
        return true;
    }

    const std::string& wanted_;
    std::string& text_;
    int depth_ = 0;
    bool at_key_ = false;
};

}  // namespace

void text_of(const Block& block, const Piece& piece, const CorpusOptions& options, PieceText& out) {
    out = {};
    out.text = std::string_view(block.text).substr(piece.offset, piece.size);
    const std::string& path = options.inputs[block.file];
    if (const size_t good = valid_utf8_prefix(out.text); good != out.text.size()) {
        const auto line = piece.line + std::count(out.text.begin(),
                                                  out.text.begin() + static_cast<std::ptrdiff_t>(good), '\n');
        LEVIN_REQUIRE(options.invalid_utf8 != InvalidUtf8::fail, path,
                      "line {} is not valid UTF-8 (byte {:#04x}); convert the file with iconv, or choose "
                      "--invalid-utf8 replace or skip",
                      line, static_cast<unsigned>(static_cast<uint8_t>(out.text[good])));
        if (options.invalid_utf8 == InvalidUtf8::skip) {
            out.invalid = true;
            out.text = {};
            return;
        }
        out.storage = replace_invalid_utf8(out.text, out.replaced);
        out.text = out.storage;
    }
    if (!piece.is_json) return;
    std::string text;
    TextOfKey taker(options.text_key, text);
    nlohmann::json::sax_parse(out.text.begin(), out.text.end(), &taker);
    std::string problem;
    if (!taker.error.empty()) {
        problem = "is no valid JSON: " + taker.error;
    } else if (!taker.is_object) {
        problem = "is no JSON object";
    } else if (!taker.found) {
        problem = taker.other_type ? fmt::format("has \"{}\", but it is no string", options.text_key)
                                   : fmt::format("has no key \"{}\", only: {}; choose one with --text-key",
                                                 options.text_key, taker.keys.empty() ? "none" : taker.keys);
    }
    if (!problem.empty()) {
        LEVIN_REQUIRE(options.bad_lines == BadLines::skip, path,
                      "line {} {}; mend it, or leave such lines out with --bad-lines skip", piece.line,
                      problem);
        out.bad_line = true;
        out.text = {};
        return;
    }
    out.storage = std::move(text);
    out.text = out.storage;
}

}  // namespace levin
