#include "data/tokenizer.h"

#include <filesystem>

#include "data/file.h"
#include "data/shard_info.h"
#include "data/utf8.h"
#include "kernels/base/error.h"
#include "kernels/base/file.h"

namespace levin {

namespace {

constexpr size_t kLargestTokenizerFile = size_t{1} << 28;

bool ends_with(std::string_view text, std::string_view end) {
    return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

std::unique_ptr<Tokenizer> load_bpe(const std::string& path, const std::string& config_path) {
    const std::string config =
        file_exists(config_path) ? read_text_file(config_path, kLargestTokenizerFile) : "";
    return make_bpe_tokenizer(read_text_file(path, kLargestTokenizerFile), config, path);
}

}  // namespace

void Tokenizer::set_special_ids(int32_t bos, int32_t eos, int32_t pad) {
    bos_id_ = bos;
    eos_id_ = eos;
    pad_id_ = pad;
}

void Tokenizer::check_id(int32_t id) const {
    LEVIN_REQUIRE(id >= 0 && id < vocab_size(), "tokenizer",
                  "token id {} is outside the vocabulary of {} tokens", id, vocab_size());
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, SpecialTokens special) const {
    std::vector<int32_t> out;
    encode(text, special, out);
    return out;
}

std::string Tokenizer::decode(std::span<const int32_t> ids) const {
    std::string out;
    bool first = drops_first_space();
    for (const int32_t id : ids) {
        std::string bytes = token_bytes(id);
        if (first && !bytes.empty()) {
            if (bytes[0] == ' ') bytes.erase(0, 1);
            first = false;
        }
        out += bytes;
    }
    return out;
}

// A newline with text on both sides is a border of every pre-tokenizer in use: \s+ cannot reach over it to
// either side, and no pattern joins a newline to the letters after it.
TextCut Tokenizer::find_cut(std::string_view text) const {
    const size_t at = find_lone(text, '\n');
    return at == 0 ? TextCut{} : TextCut{at + 1, at + 1};
}

bool Tokenizer::is_lone(std::string_view text, size_t at) {
    const auto is_text = [](const Utf8Character& c) {
        return c.status == Utf8Status::good && !is_unicode_space(c.code);
    };
    return at > 0 && at + 1 < text.size() && is_text(previous_character(text, at)) &&
           is_text(next_character(text, at + 1));
}

size_t Tokenizer::find_lone(std::string_view text, char separator) {
    for (size_t end = text.size(); end > 2;) {
        const size_t at = text.rfind(separator, end - 2);
        if (at == std::string_view::npos || at == 0) break;
        if (is_lone(text, at)) return at;
        end = at + 1;
    }
    return 0;
}

std::string StreamDecoder::push(int32_t id) {
    std::string bytes = tokenizer_->token_bytes(id);
    if (at_start_ && !bytes.empty()) {
        if (tokenizer_->drops_first_space() && bytes[0] == ' ') bytes.erase(0, 1);
        at_start_ = false;
    }
    pending_ += bytes;
    std::string out;
    size_t at = 0;
    while (at < pending_.size()) {
        const size_t good = valid_utf8_prefix(std::string_view(pending_).substr(at));
        out.append(pending_, at, good);
        at += good;
        if (at == pending_.size()) break;
        const Utf8Character c = next_character(pending_, at);
        if (c.status == Utf8Status::truncated) break;  // the next token may complete it
        out += kReplacementCharacter;
        at += c.size;
    }
    pending_.erase(0, at);
    return out;
}

std::string StreamDecoder::finish() {
    int64_t replaced = 0;
    std::string out = replace_invalid_utf8(pending_, replaced);
    pending_.clear();
    return out;
}

std::unique_ptr<Tokenizer> load_tokenizer(const std::string& path) {
    if (path == "byte") return make_byte_tokenizer();
    std::error_code ignored;
    if (std::filesystem::is_directory(path, ignored)) {
        const std::string json = path + "/tokenizer.json", model = path + "/tokenizer.model";
        if (file_exists(model)) return load_tokenizer(model);  // beside a tokenizer.json it is the original
        if (file_exists(json)) return load_bpe(json, path + "/tokenizer_config.json");
        fail(Fault::input, path, "the folder holds neither tokenizer.json nor tokenizer.model");
    }
    const bool is_json = ends_with(path, ".json"), is_model = ends_with(path, ".model");
    LEVIN_REQUIRE(
        is_json || is_model, "tokenizer",
        "\"{}\" is no tokenizer: expected byte, a SentencePiece .model file, a Hugging Face tokenizer.json, "
        "or a folder with one of the two",
        path);
    if (is_model) return make_sentencepiece_tokenizer(read_text_file(path, kLargestTokenizerFile), path);
    return load_bpe(path, (std::filesystem::path(path).parent_path() / "tokenizer_config.json").string());
}

std::unique_ptr<Tokenizer> load_tokenizer_of_shard(const std::string& prefix) {
    const auto info = read_shard_info(prefix);
    LEVIN_REQUIRE(info.has_value(), prefix,
                  "has no {}.json, so its tokenizer is not known; name the tokenizer yourself", prefix);
    std::unique_ptr<Tokenizer> tokenizer;
    if (info->tokenizer_kind == "byte") {
        tokenizer = make_byte_tokenizer();
    } else {
        const std::string file =
            (std::filesystem::path(prefix).parent_path() / info->tokenizer_file).string();
        tokenizer = ends_with(file, ".json") ? load_bpe(file, "") : load_tokenizer(file);
    }
    LEVIN_REQUIRE(tokenizer->kind() == info->tokenizer_kind && tokenizer->vocab_size() == info->vocab_size,
                  prefix + ".json",
                  "describes a {} tokenizer with {} tokens, the file beside it is {} with {}",
                  info->tokenizer_kind, info->vocab_size, tokenizer->kind(), tokenizer->vocab_size());
    tokenizer->set_special_ids(info->bos_id, info->eos_id, info->pad_id);
    return tokenizer;
}

}  // namespace levin
