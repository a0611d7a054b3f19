// Text to token ids and back. Three kinds behind one interface:
//   byte           ids 0..255 are the bytes of the text, 256 ends a document (<|endoftext|>); vocab_size 257
//   sentencepiece  a .model file, through the SentencePiece library
//   bpe            byte-level BPE from a Hugging Face tokenizer.json
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace levin {

// What to do with text that spells a special token, such as "<|endoftext|>" inside a web page.
enum class SpecialTokens {
    text,   // encode it as ordinary text: for corpora, where nobody meant it
    parse,  // encode it as the special token: for prompts; what Hugging Face tokenizers do
};

// Where a long text may be cut so that both parts, encoded by themselves, give the tokens of the whole: the
// left part is [0, left_end), the right part starts at right_begin. They differ when the tokenizer puts back
// what lies between.
struct TextCut {
    size_t left_end = 0, right_begin = 0;
};

// Immutable after construction; encode and decode may be called from any number of threads at once.
class Tokenizer {
public:
    virtual ~Tokenizer() = default;

    virtual std::string kind() const = 0;
    // One more than the largest id.
    virtual int32_t vocab_size() const = 0;
    // -1 where there is none.
    int32_t bos_id() const { return bos_id_; }
    int32_t eos_id() const { return eos_id_; }
    int32_t pad_id() const { return pad_id_; }
    // A shard's description knows the ids even where the tokenizer file alone does not tell them.
    void set_special_ids(int32_t bos, int32_t eos, int32_t pad);

    // Appends the ids of `text` (UTF-8) to `out`. Adds neither bos nor eos.
    virtual void encode(std::string_view text, SpecialTokens special, std::vector<int32_t>& out) const = 0;
    std::vector<int32_t> encode(std::string_view text, SpecialTokens special = SpecialTokens::parse) const;

    // The text of the ids; special tokens give nothing. Tokens can hold part of a UTF-8 character: byte and
    // bpe give back the bytes as they are, so decode(encode(x)) == x for any x (under the tokenizer's own
    // normalisation). Throws Error(input) for an id outside 0 .. vocab_size.
    std::string decode(std::span<const int32_t> ids) const;

    // The bytes one token stands for, a leading space included; empty for a special token.
    virtual std::string token_bytes(int32_t id) const = 0;
    // The token as its vocabulary writes it, for messages: "▁the", "Ġthe", "<|endoftext|>".
    virtual std::string token_name(int32_t id) const = 0;
    // True when the space that leads the first token of a text was put there by the tokenizer.
    virtual bool drops_first_space() const { return false; }

    // A place to cut `text` near its end, or {0, 0} when there is none.
    virtual TextCut find_cut(std::string_view text) const;

    // Writes what transformers' AutoTokenizer needs into an existing folder; returns the names of the files.
    virtual std::vector<std::string> save_to(const std::string& folder) const = 0;
    // The copy that a shard keeps beside it: extension such as ".tokenizer.model" and content; both empty for
    // byte.
    virtual std::string file_extension() const { return ""; }
    virtual std::string_view file_content() const { return {}; }

protected:
    void check_id(int32_t id) const;
    // Whether text[at] has a character that is no white space on both sides.
    static bool is_lone(std::string_view text, size_t at);
    // The last place of `separator` (' ' or '\n') in `text` that is_lone(); 0: none.
    static size_t find_lone(std::string_view text, char separator);

    int32_t bos_id_ = -1, eos_id_ = -1, pad_id_ = -1;
};

// Decodes token by token for a terminal: push() returns the characters that are complete by now, as valid
// UTF-8 (a byte that can belong to no character becomes U+FFFD).
class StreamDecoder {
public:
    explicit StreamDecoder(const Tokenizer& tokenizer) : tokenizer_(&tokenizer) {}
    std::string push(int32_t id);
    // What is left at the end: U+FFFD for a character that was never completed, else nothing.
    std::string finish();

private:
    const Tokenizer* tokenizer_;
    std::string pending_;
    bool at_start_ = true;
};

std::unique_ptr<Tokenizer> make_byte_tokenizer();
// `content` is the .model file; `name` is what errors call it.
std::unique_ptr<Tokenizer> make_sentencepiece_tokenizer(std::string content, const std::string& name);
// `tokenizer_json`, `config_json` are the texts of tokenizer.json and tokenizer_config.json (may be empty: no
// bos, eos and pad ids then, except those whose names are customary).
std::unique_ptr<Tokenizer> make_bpe_tokenizer(std::string tokenizer_json, const std::string& config_json,
                                              const std::string& name);

// `path`: "byte", a SentencePiece .model, a tokenizer.json, or a folder that holds one of the two files.
std::unique_ptr<Tokenizer> load_tokenizer(const std::string& path);
// The tokenizer a shard was built with, from PREFIX.json and the copy beside it. Throws Error(input) when the
// shard was not built by levin.
std::unique_ptr<Tokenizer> load_tokenizer_of_shard(const std::string& prefix);

}  // namespace levin
