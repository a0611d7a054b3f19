// The byte tokenizer: id = byte, and one token that ends a document. Exported as a byte-level BPE without
// merges, which gives the same ids in Hugging Face tokenizers.
#include <nlohmann/json.hpp>

#include "data/byte_level.h"
#include "data/tokenizer.h"
#include "kernels/base/file.h"

namespace levin {

namespace {

constexpr int32_t kEndOfText = 256;
constexpr std::string_view kEndOfTextName = "<|endoftext|>";

class ByteTokenizer final : public Tokenizer {
public:
    ByteTokenizer() { eos_id_ = kEndOfText; }

    std::string kind() const override { return "byte"; }
    int32_t vocab_size() const override { return 257; }

    using Tokenizer::encode;
    void encode(std::string_view text, SpecialTokens special, std::vector<int32_t>& out) const override {
        while (special == SpecialTokens::parse) {
            const size_t at = text.find(kEndOfTextName);
            if (at == std::string_view::npos) break;
            append_bytes(text.substr(0, at), out);
            out.push_back(kEndOfText);
            text.remove_prefix(at + kEndOfTextName.size());
        }
        append_bytes(text, out);
    }

    std::string token_bytes(int32_t id) const override {
        check_id(id);
        return id < 256 ? std::string(1, static_cast<char>(id)) : std::string();
    }

    std::string token_name(int32_t id) const override {
        check_id(id);
        return id < 256 ? byte_level_characters()[static_cast<size_t>(id)] : std::string(kEndOfTextName);
    }

    TextCut find_cut(std::string_view text) const override { return {text.size(), text.size()}; }

    std::vector<std::string> save_to(const std::string& folder) const override {
        const std::string end(kEndOfTextName);
        nlohmann::ordered_json vocab;
        for (size_t byte = 0; byte < 256; ++byte) vocab[byte_level_characters()[byte]] = byte;
        nlohmann::ordered_json json;
        json["version"] = "1.0";
        json["truncation"] = nullptr;
        json["padding"] = nullptr;
        json["added_tokens"] = {{{"id", kEndOfText},
                                 {"content", end},
                                 {"single_word", false},
                                 {"lstrip", false},
                                 {"rstrip", false},
                                 {"normalized", false},
                                 {"special", true}}};
        json["normalizer"] = nullptr;
        const nlohmann::ordered_json byte_level = {
            {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", false}};
        json["pre_tokenizer"] = byte_level;
        json["post_processor"] = nullptr;
        json["decoder"] = byte_level;
        json["model"] = {{"type", "BPE"},
                         {"dropout", nullptr},
                         {"unk_token", nullptr},
                         {"continuing_subword_prefix", nullptr},
                         {"end_of_word_suffix", nullptr},
                         {"fuse_unk", false},
                         {"byte_fallback", false},
                         {"vocab", vocab},
                         {"merges", nlohmann::ordered_json::array()}};
        write_text_file(folder + "/tokenizer.json", json.dump(1) + "\n");
        write_text_file(folder + "/tokenizer_config.json",
                        tokenizer_config_json({"PreTrainedTokenizerFast", "", end, "", "", ""}));
        return {"tokenizer.json", "tokenizer_config.json"};
    }

private:
    static void append_bytes(std::string_view text, std::vector<int32_t>& out) {
        const size_t begin = out.size();
        out.resize(begin + text.size());
        for (size_t i = 0; i < text.size(); ++i) out[begin + i] = static_cast<uint8_t>(text[i]);
    }
};

}  // namespace

std::unique_ptr<Tokenizer> make_byte_tokenizer() { return std::make_unique<ByteTokenizer>(); }

}  // namespace levin
