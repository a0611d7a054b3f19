// How a byte-level BPE divides text into words before merging: the "pre_tokenizer" of a Hugging Face
// tokenizer.json. Kinds read: ByteLevel, Split (Regex or String pattern; behaviors Isolated and Removed),
// Digits, and Sequence of these.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace levin {

class Pretokenizer {
public:
    // What one thread needs while splitting. Not shared between threads.
    class Scratch {
    public:
        ~Scratch();
        Scratch();
        Scratch(Scratch&&) noexcept;

    private:
        friend class Pretokenizer;
        struct Members;
        std::unique_ptr<Members> members_;
    };

    // `json` is the value of "pre_tokenizer", null for none. Throws Error(input) naming `name` for what is
    // not known.
    Pretokenizer(const nlohmann::json& json, const std::string& name);
    ~Pretokenizer();

    // The words of `text` (valid UTF-8) in order. They live in `text` or in `scratch` until its next use.
    const std::vector<std::string_view>& split(std::string_view text, Scratch& scratch) const;

private:
    struct Step;
    void add(const nlohmann::json& json, int depth);
    void apply(const Step& step, std::string_view word, Scratch::Members& scratch,
               std::vector<std::string_view>& out) const;

    std::string name_;
    std::vector<Step> steps_;
    bool byte_level_ = false;
};

// The pattern with \s and \S written out as Unicode's White_Space, which is what they mean to the tokenizers
// these patterns come from; PCRE2's own \s also takes U+180E.
std::string with_unicode_space(std::string_view pattern);

}  // namespace levin
