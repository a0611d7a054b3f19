#include "data/pretokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <deque>
#include <nlohmann/json.hpp>

#include "data/utf8.h"
#include "kernels/base/error.h"

namespace levin {

namespace {

using Json = nlohmann::json;

constexpr size_t kJitStackStart = size_t{32} << 10, kJitStackMost = size_t{8} << 20;
constexpr int kDeepestSequence = 8;
constexpr std::string_view kSpaceSet =
    R"(\t-\r \x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";
// The pattern of GPT-2, which a ByteLevel step uses unless it says "use_regex": false.
constexpr const char* kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

struct CodeDeleter {
    void operator()(pcre2_code* code) const { pcre2_code_free(code); }
};
using Code = std::unique_ptr<pcre2_code, CodeDeleter>;

std::string pcre2_message(int code) {
    PCRE2_UCHAR8 text[256];
    pcre2_get_error_message(code, text, sizeof(text));
    return reinterpret_cast<const char*>(text);
}

Code compile(const std::string& pattern, const std::string& name) {
    int code = 0;
    PCRE2_SIZE at = 0;
    const std::string wanted = with_unicode_space(pattern);
    // Every text is valid UTF-8 when it gets here, so the matcher need not check again; but a \C could split
    // a character, and callouts have no place in a tokenizer.
    Code regex(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(wanted.data()), wanted.size(),
                             PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &code, &at, nullptr));
    LEVIN_REQUIRE(regex != nullptr, name,
                  "the pattern \"{}\" of the pre_tokenizer does not compile: {} (at {})", pattern,
                  pcre2_message(code), at);
    pcre2_jit_compile(regex.get(), PCRE2_JIT_COMPLETE);  // without JIT the interpreter gives the same matches
    return regex;
}

// \Q..\E around the text; a \E inside it must not end the quotation.
std::string quote(std::string_view text) {
    std::string out(R"(\Q)");
    for (size_t at = 0; at < text.size(); ++at) {
        out.push_back(text[at]);
        if (text.substr(at, 2) == R"(\E)") out.append(R"(\E\Q)");
    }
    out.append(R"(\E)");
    return out;
}

bool flag(const Json& json, const char* key, bool otherwise) {
    const auto at = json.find(key);
    return at != json.end() && at->is_boolean() ? at->get<bool>() : otherwise;
}

}  // namespace

struct Pretokenizer::Step {
    enum class Kind { add_space, isolate, keep_matches, drop_matches };
    Kind kind;
    Code regex;
};

struct Pretokenizer::Scratch::Members {
    pcre2_match_data* match = pcre2_match_data_create(64, nullptr);
    pcre2_jit_stack* stack = pcre2_jit_stack_create(kJitStackStart, kJitStackMost, nullptr);
    pcre2_match_context* context = pcre2_match_context_create(nullptr);
    std::vector<std::string_view> words, next;
    std::deque<std::string> texts;  // words that a step had to change

    Members() { pcre2_jit_stack_assign(context, nullptr, stack); }
    ~Members() {
        pcre2_match_context_free(context);
        pcre2_jit_stack_free(stack);
        pcre2_match_data_free(match);
    }
};

Pretokenizer::Scratch::Scratch() : members_(std::make_unique<Members>()) {}
Pretokenizer::Scratch::Scratch(Scratch&&) noexcept = default;
Pretokenizer::Scratch::~Scratch() = default;

Pretokenizer::Pretokenizer(const Json& json, const std::string& name) : name_(name) {
    if (!json.is_null()) add(json, 0);
    LEVIN_REQUIRE(byte_level_, name,
                  "the pre_tokenizer has no ByteLevel step, so this is no byte-level BPE; use the model's "
                  "SentencePiece "
                  ".model file if it has one");
}

Pretokenizer::~Pretokenizer() = default;

void Pretokenizer::add(const Json& json, int depth) {
    LEVIN_REQUIRE(json.is_object() && depth < kDeepestSequence, name_, "the pre_tokenizer is no object");
    const auto type_at = json.find("type");
    const std::string type = type_at != json.end() && type_at->is_string() ? type_at->get<std::string>() : "";
    LEVIN_REQUIRE(!byte_level_, name_, "a pre_tokenizer step {} follows ByteLevel, which must be the last",
                  type);
    if (type == "Sequence") {
        const auto steps = json.find("pretokenizers");
        LEVIN_REQUIRE(steps != json.end() && steps->is_array(), name_,
                      "a Sequence lacks its \"pretokenizers\"");
        for (const Json& step : *steps) add(step, depth + 1);
    } else if (type == "ByteLevel") {
        if (flag(json, "add_prefix_space", true)) steps_.push_back({Step::Kind::add_space, nullptr});
        if (flag(json, "use_regex", true))
            steps_.push_back({Step::Kind::isolate, compile(kGpt2Pattern, name_)});
        byte_level_ = true;
    } else if (type == "Digits") {
        const char* pattern = flag(json, "individual_digits", false) ? R"(\p{N})" : R"(\p{N}+)";
        steps_.push_back({Step::Kind::isolate, compile(pattern, name_)});
    } else if (type == "Split") {
        const Json pattern = json.value("pattern", Json());
        const Json regex = pattern.is_object() ? pattern.value("Regex", Json()) : Json();
        const Json text = pattern.is_object() ? pattern.value("String", Json()) : Json();
        LEVIN_REQUIRE(regex.is_string() || (text.is_string() && !text.get<std::string>().empty()), name_,
                      "a Split step has neither pattern.Regex nor pattern.String");
        const Json behavior = json.value("behavior", Json());
        const bool invert = flag(json, "invert", false);
        LEVIN_REQUIRE(behavior == "Isolated" || behavior == "Removed", name_,
                      "a Split step has behavior {}, only \"Isolated\" and \"Removed\" are supported",
                      behavior.dump());
        const auto kind = behavior == "Isolated" ? Step::Kind::isolate
                          : invert               ? Step::Kind::keep_matches
                                                 : Step::Kind::drop_matches;
        const std::string source =
            regex.is_string() ? regex.get<std::string>() : quote(text.get<std::string>());
        steps_.push_back({kind, compile(source, name_)});
    } else {
        fail(Fault::input, name_,
             "pre_tokenizer step \"{}\" is not supported; known are ByteLevel, Split, Digits and Sequence",
             type);
    }
}

void Pretokenizer::apply(const Step& step, std::string_view word, Scratch::Members& scratch,
                         std::vector<std::string_view>& out) const {
    const auto put = [&](size_t begin, size_t end, bool is_match) {
        if (begin == end) return;
        if (step.kind == Step::Kind::keep_matches && !is_match) return;
        if (step.kind == Step::Kind::drop_matches && is_match) return;
        out.push_back(word.substr(begin, end - begin));
    };
    size_t from = 0, search = 0;  // `from`: end of the last piece put out
    while (search <= word.size()) {
        const int result =
            pcre2_match(step.regex.get(), reinterpret_cast<PCRE2_SPTR>(word.data()), word.size(), search,
                        PCRE2_NO_UTF_CHECK, scratch.match, scratch.context);
        if (result == PCRE2_ERROR_NOMATCH) break;
        LEVIN_REQUIRE(result >= 0, name_, "the pre_tokenizer's pattern fails on a text of {} bytes: {}",
                      word.size(), pcre2_message(result));
        const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(scratch.match);
        const size_t begin = ends[0], end = ends[1];
        if (end <= begin ||
            begin < from) {  // an empty match divides nothing: look on after the next character
            if (search == word.size()) break;
            search = std::max(search, begin) >= word.size()
                         ? word.size() + 1
                         : std::max(search, begin) + next_character(word, std::max(search, begin)).size;
            continue;
        }
        put(from, begin, false);
        put(begin, end, true);
        from = search = end;
    }
    put(from, word.size(), false);
}

const std::vector<std::string_view>& Pretokenizer::split(std::string_view text, Scratch& scratch) const {
    Scratch::Members& s = *scratch.members_;
    s.texts.clear();
    s.words.clear();
    if (!text.empty()) s.words.push_back(text);
    for (const Step& step : steps_) {
        if (step.kind == Step::Kind::add_space) {
            for (std::string_view& word : s.words) {
                if (word[0] != ' ') word = s.texts.emplace_back(std::string(1, ' ').append(word));
            }
            continue;
        }
        s.next.clear();
        for (const std::string_view word : s.words) apply(step, word, s, s.next);
        s.words.swap(s.next);
    }
    return s.words;
}

std::string with_unicode_space(std::string_view pattern) {
    std::string out;
    bool in_class = false;
    for (size_t at = 0; at < pattern.size(); ++at) {
        const char c = pattern[at];
        if (c == '\\' && at + 1 < pattern.size()) {
            const char escaped = pattern[++at];
            if (escaped == 'Q') {  // literal to the closing \E
                const size_t end = std::min(pattern.find("\\E", at), pattern.size());
                out.append("\\").append(pattern.substr(at, end - at));
                at = end - 1;
            } else if (escaped == 's') {
                out.append(in_class ? "" : "[").append(kSpaceSet).append(in_class ? "" : "]");
            } else if (escaped == 'S' && !in_class) {
                out.append("[^").append(kSpaceSet).append("]");
            } else {
                out += c;
                out += escaped;
            }
            continue;
        }
        if (c == '[' && !in_class) {
            in_class = true;
            out += c;
            if (at + 1 < pattern.size() && pattern[at + 1] == '^') out += pattern[++at];
            if (at + 1 < pattern.size() && pattern[at + 1] == ']') out += pattern[++at];  // first: a literal
            continue;
        }
        // Oniguruma, for which these patterns are written, nests and intersects classes; PCRE2 would read
        // them otherwise.
        const bool nested = in_class && c == '[' && pattern.substr(at, 2) != "[:";
        LEVIN_REQUIRE(!nested && !(in_class && pattern.substr(at, 2) == "&&"), "tokenizer",
                      "the pre_tokenizer's pattern \"{}\" has a character class inside another, or an "
                      "intersection (&&), "
                      "at {}; neither is supported",
                      pattern, at);
        if (c == '[') {  // [:alpha:], whose closing bracket must not end the class
            const size_t end = std::min(pattern.find(":]", at), pattern.size() - 1);
            out.append(pattern.substr(at, end + 2 - at));
            at = end + 1;
            continue;
        }
        if (c == ']') in_class = false;
        out += c;
    }
    return out;
}

}  // namespace levin
