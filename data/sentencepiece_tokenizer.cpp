#include <sentencepiece_processor.h>

#include <algorithm>
#include <cstdlib>

#include "data/byte_level.h"
#include "data/sentencepiece_export.h"
#include "data/tokenizer.h"
#include "data/word_cache.h"
#include "kernels/base/error.h"
#include "kernels/base/file.h"

namespace levin {

namespace {

constexpr size_t kWindow = 4096;                     // bytes
constexpr std::string_view kSpace = "\xE2\x96\x81";  // U+2581, how SentencePiece writes a space

std::string replace_space_mark(std::string_view piece) {
    std::string out;
    for (size_t at = 0; at < piece.size();) {
        const size_t mark = std::min(piece.find(kSpace, at), piece.size());
        out.append(piece, at, mark - at);
        if (mark == piece.size()) break;
        out += ' ';
        at = mark + kSpace.size();
    }
    return out;
}

class SentencePieceTokenizer final : public Tokenizer {
public:
    SentencePieceTokenizer(std::string content, const std::string& name) : content_(std::move(content)) {
        const auto status = processor_.LoadFromSerializedProto(content_);
        LEVIN_REQUIRE(status.ok(), name, "is no SentencePiece model: {}", status.ToString());
        const int size = processor_.GetPieceSize();
        LEVIN_REQUIRE(size > 0, name, "is a SentencePiece model without pieces");
        bos_id_ = valid(processor_.bos_id());
        eos_id_ = valid(processor_.eos_id());
        pad_id_ = valid(processor_.pad_id());
        bytes_.reserve(static_cast<size_t>(size));
        for (int id = 0; id < size; ++id) bytes_.push_back(bytes_of(id));
        for (int id = 0; id < size; ++id) {
            if (processor_.IsUnknown(id)) continue;
            const std::string& piece = bytes_[static_cast<size_t>(id)];
            const size_t word = piece.find_first_not_of(' ');
            if (word != std::string::npos && piece.find(' ', word) != std::string::npos) words_apart_ = false;
        }
        // The library does not tell whether the model puts a space before every text, but shows it.
        std::vector<int> ids;
        LEVIN_REQUIRE(processor_.Encode("a", &ids).ok() && !ids.empty(), name, "cannot encode the letter a");
        drops_first_space_ = token_bytes(ids[0]).starts_with(' ');
    }

    std::string kind() const override { return "sentencepiece"; }
    int32_t vocab_size() const override { return static_cast<int32_t>(bytes_.size()); }
    bool drops_first_space() const override { return drops_first_space_; }

    using Tokenizer::encode;
    // Control pieces (<s>, </s>) are never made from text by the library, so both ways of `special` are one
    // here; user-defined pieces are always found. Where no piece reaches over a space, words are encoded one
    // by one: the library's time per byte grows with the text, and most words were met before.
    void encode(std::string_view text, SpecialTokens, std::vector<int32_t>& out) const override {
        ScratchPool<WordCache>::Lease lease(pool_);
        WordCache& cache = *lease;
        for (size_t search = 1; words_apart_;) {
            const size_t space = text.find(' ', search);
            if (space == std::string_view::npos) break;
            search = space + 1;
            if (!is_lone(text, space)) continue;
            encode_word(text.substr(0, space), cache, out);
            text.remove_prefix(space + (drops_first_space_ ? 1u : 0u));
            search = 1;
        }
        encode_word(text, cache, out);
    }

    std::string token_bytes(int32_t id) const override {
        check_id(id);
        return bytes_[static_cast<size_t>(id)];
    }

    std::string token_name(int32_t id) const override {
        check_id(id);
        return processor_.IdToPiece(id);
    }

    // Between two words: where the model itself puts a space before every text, the space there is left out.
    TextCut find_cut(std::string_view text) const override {
        const size_t at = words_apart_ ? find_lone(text, ' ') : 0;
        return at == 0 ? TextCut{} : TextCut{at, at + (drops_first_space_ ? 1u : 0u)};
    }

    std::vector<std::string> save_to(const std::string& folder) const override {
        std::vector<std::string> files{"tokenizer.model", "tokenizer_config.json"};
        write_text_file(folder + "/tokenizer.model", content_);
        // What transformers itself makes of a .model file differs for unigram models and for text with a
        // leading space.
        const std::string json = sentencepiece_tokenizer_json(processor_, content_);
        if (!json.empty()) {
            write_text_file(folder + "/tokenizer.json", json);
            files.push_back("tokenizer.json");
        }
        const auto name = [&](int id) { return id >= 0 ? processor_.IdToPiece(id) : std::string(); };
        write_text_file(
            folder + "/tokenizer_config.json",
            tokenizer_config_json({json.empty() ? "LlamaTokenizer" : "PreTrainedTokenizerFast", name(bos_id_),
                                   name(eos_id_), name(pad_id_), name(processor_.unk_id()), ""}));
        return files;
    }

    std::string file_extension() const override { return ".tokenizer.model"; }
    std::string_view file_content() const override { return content_; }

private:
    void encode_word(std::string_view text, WordCache& cache, std::vector<int32_t>& out) const {
        if (const WordCache::Tokens known = cache.find(text); known.ids != nullptr) {
            out.insert(out.end(), known.ids, known.ids + known.count);
            return;
        }
        std::vector<int> ids;
        const auto status = processor_.Encode(absl::string_view(text.data(), text.size()), &ids);
        LEVIN_REQUIRE(status.ok(), "tokenizer", "SentencePiece cannot encode a text of {} bytes: {}",
                      text.size(), status.ToString());
        out.insert(out.end(), ids.begin(), ids.end());
        cache.put(text, ids);
    }

    int32_t valid(int id) const { return id >= 0 && id < processor_.GetPieceSize() ? id : -1; }

    std::string bytes_of(int id) const {
        if (processor_.IsControl(id)) return "";
        const std::string& piece = processor_.IdToPiece(id);
        if (processor_.IsByte(id)) {  // written <0xNN>
            if (piece.size() != 6) return "";
            const int value = static_cast<int>(std::strtol(piece.c_str() + 3, nullptr, 16));
            return std::string(1, static_cast<char>(value));
        }
        if (processor_.IsUnknown(id)) return " \xE2\x81\x87 ";  // the library's own sign for it
        return replace_space_mark(piece);
    }

    std::string content_;
    sentencepiece::SentencePieceProcessor processor_;
    std::vector<std::string> bytes_;
    bool drops_first_space_ = false;
    bool words_apart_ = true;  // no piece reaches over the space between two words
    mutable ScratchPool<WordCache> pool_;
};

}  // namespace

std::unique_ptr<Tokenizer> make_sentencepiece_tokenizer(std::string content, const std::string& name) {
    return std::make_unique<SentencePieceTokenizer>(std::move(content), name);
}

}  // namespace levin
