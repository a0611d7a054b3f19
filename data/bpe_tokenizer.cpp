// Byte-level BPE from a Hugging Face tokenizer.json: "model" (vocab and merges), "pre_tokenizer",
// "added_tokens". What the file asks for and levin does not do (other models, normalizers, dropout, ..) is
// refused when it is loaded.
#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "data/bpe_model.h"
#include "data/byte_level.h"
#include "data/normalize.h"
#include "data/pretokenizer.h"
#include "data/tokenizer.h"
#include "data/utf8.h"
#include "kernels/base/error.h"
#include "kernels/base/file.h"

namespace levin {

namespace {

using Json = nlohmann::json;

constexpr int64_t kLargestId = (int64_t{1} << 24) - 1;

struct AddedToken {
    std::string content;
    int32_t id = 0;
    bool special = false, left_strip = false, right_strip = false;
};

class BpeTokenizer final : public Tokenizer {
public:
    BpeTokenizer(std::string text, const std::string& config_json, std::string name)
        : text_(std::move(text)), name_(std::move(name)) {
        const Json json = Json::parse(text_, nullptr, /*allow_exceptions=*/false);
        LEVIN_REQUIRE(json.is_object(), name_, "is no JSON object; expected a Hugging Face tokenizer.json");
        read_normalizer(json.value("normalizer", Json()));
        pretokenizer_ = std::make_unique<Pretokenizer>(json.value("pre_tokenizer", Json()), name_);
        read_model(json.value("model", Json()));
        read_added_tokens(json.value("added_tokens", Json::array()));
        read_config(config_json);
    }

    std::string kind() const override { return "bpe"; }
    int32_t vocab_size() const override { return static_cast<int32_t>(names_.size()); }

    using Tokenizer::encode;
    void encode(std::string_view text, SpecialTokens special, std::vector<int32_t>& out) const override {
        std::string mended;
        if (valid_utf8_prefix(text) != text.size()) {
            int64_t ignored = 0;
            text = mended = replace_invalid_utf8(text, ignored);
        }
        ScratchPool<Scratch>::Lease lease(pool_);
        size_t from = 0;
        for (size_t at = 0; at < text.size();) {
            at = std::min(text.find_first_of(first_bytes_, at), text.size());
            const AddedToken* token = at < text.size() ? added_token_at(text.substr(at), special) : nullptr;
            if (token == nullptr) {
                ++at;
                continue;
            }
            size_t end = at;
            if (token->left_strip) {
                while (end > from) {
                    const Utf8Character c = previous_character(text, end);
                    if (c.status != Utf8Status::good || !is_unicode_space(c.code)) break;
                    end -= c.size;
                }
            }
            encode_ordinary(text.substr(from, end - from), *lease, out);
            out.push_back(token->id);
            at += token->content.size();
            while (token->right_strip && at < text.size() &&
                   is_unicode_space(next_character(text, at).code)) {
                at += next_character(text, at).size;
            }
            from = at;
        }
        encode_ordinary(text.substr(from), *lease, out);
    }

    std::string token_bytes(int32_t id) const override {
        check_id(id);
        return bytes_[static_cast<size_t>(id)];
    }
    std::string token_name(int32_t id) const override {
        check_id(id);
        return names_[static_cast<size_t>(id)];
    }

    std::vector<std::string> save_to(const std::string& folder) const override {
        const auto name = [&](int32_t id) {
            return id >= 0 ? names_[static_cast<size_t>(id)] : std::string();
        };
        write_text_file(folder + "/tokenizer.json", text_);
        write_text_file(folder + "/tokenizer_config.json",
                        tokenizer_config_json({"PreTrainedTokenizerFast", name(bos_id_), name(eos_id_),
                                               name(pad_id_), "", chat_template_}));
        return {"tokenizer.json", "tokenizer_config.json"};
    }
    std::string file_extension() const override { return ".tokenizer.json"; }
    std::string_view file_content() const override { return text_; }

private:
    struct Scratch {
        BpeModel::Scratch words;
        Pretokenizer::Scratch split;
    };
    void encode_ordinary(std::string_view text, Scratch& scratch, std::vector<int32_t>& out) const {
        if (text.empty()) return;
        std::string normalized;
        if (nfc_ && !is_nfc_quick(text)) text = normalized = to_nfc(text);
        for (const std::string_view word : pretokenizer_->split(text, scratch.split)) {
            model_->encode_word(word, scratch.words, out);
        }
    }

    // The longest added token that begins `text`.
    const AddedToken* added_token_at(std::string_view text, SpecialTokens special) const {
        for (const AddedToken& token : added_) {  // sorted by length, longest first
            if (token.special && special == SpecialTokens::text) continue;
            if (text.substr(0, token.content.size()) == token.content) return &token;
        }
        return nullptr;
    }

    void read_normalizer(const Json& json) {
        if (json.is_null()) return;
        const Json type = json.is_object() ? json.value("type", Json()) : Json();
        if (type == "Sequence" && json.value("normalizers", Json()).is_array()) {
            const Json steps = json.value("normalizers", Json());
            LEVIN_REQUIRE(steps.size() <= 1, name_,
                          "has a Sequence of {} normalizers, at most one (NFC) is supported", steps.size());
            if (!steps.empty()) read_normalizer(steps[0]);
            return;
        }
        LEVIN_REQUIRE(
            type == "NFC", name_,
            "has the normalizer {}, only none and NFC are supported; if the tokenizer has a SentencePiece "
            ".model file, use that",
            type.dump());
        nfc_ = true;
    }

    void set_token(int64_t id, const std::string& name, std::string bytes) {
        LEVIN_REQUIRE(id >= 0 && id <= kLargestId, name_, "token \"{}\" has id {}, expected 0 to {}", name,
                      id, kLargestId);
        const auto index = static_cast<size_t>(id);
        if (index >= names_.size()) {
            names_.resize(index + 1);
            bytes_.resize(index + 1);
        }
        names_[index] = name;
        bytes_[index] = std::move(bytes);
    }

    void read_model(const Json& model) {
        LEVIN_REQUIRE(model.is_object(), name_, "has no \"model\"; expected a Hugging Face tokenizer.json");
        const Json type = model.value("type", Json("BPE"));  // old files leave it out
        LEVIN_REQUIRE(type == "BPE", name_, "has a model of type {}, only BPE is supported", type.dump());
        for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
            const Json value = model.value(key, Json());
            LEVIN_REQUIRE(value.is_null() || value == "", name_, "has {} {}, which byte-level BPE has not",
                          key, value.dump());
        }
        const Json dropout = model.value("dropout", Json());
        LEVIN_REQUIRE(dropout.is_null() || dropout == 0.0, name_,
                      "has dropout {}; set it to null, text must have one encoding", dropout.dump());
        LEVIN_REQUIRE(model.value("byte_fallback", Json(false)) == false, name_,
                      "has byte_fallback, so it is no byte-level BPE; use its SentencePiece .model file");
        const auto vocab = model.find("vocab");
        LEVIN_REQUIRE(vocab != model.end() && vocab->is_object() && !vocab->empty(), name_,
                      "has no \"model.vocab\" with token names and ids");
        const bool whole_words = model.value("ignore_merges", Json(false)) == true;
        std::unordered_map<std::string, int32_t> ids, words;
        ids.reserve(vocab->size());
        for (const auto& [token, id] : vocab->items()) {
            LEVIN_REQUIRE(id.is_number_integer() && id.get<int64_t>() >= 0 && id.get<int64_t>() <= kLargestId,
                          name_, "token \"{}\" has id {}, expected 0 to {}", token, id.dump(), kLargestId);
            // A name outside the alphabet is a special token that stands in the vocabulary: it has no bytes.
            std::string bytes;
            const bool is_word = from_byte_level(token, bytes);
            ids.emplace(token, id.get<int32_t>());
            if (is_word && whole_words) words.emplace(bytes, id.get<int32_t>());
            set_token(id.get<int64_t>(), token, is_word ? std::move(bytes) : "");
        }
        std::vector<int32_t> byte_ids(256, -1);
        for (size_t byte = 0; byte < 256; ++byte) {
            if (const auto at = ids.find(byte_level_characters()[byte]); at != ids.end())
                byte_ids[byte] = at->second;
        }
        model_ = std::make_unique<BpeModel>(byte_ids, read_merges(model.value("merges", Json()), ids),
                                            std::move(words), name_);
    }

    std::vector<BpeModel::Merge> read_merges(const Json& json,
                                             const std::unordered_map<std::string, int32_t>& ids) const {
        LEVIN_REQUIRE(json.is_array(), name_, "has no list \"model.merges\"");
        std::vector<BpeModel::Merge> merges;
        merges.reserve(json.size());
        for (const Json& entry : json) {
            std::string left, right;
            if (entry.is_string()) {  // "a b", the older way
                const std::string& pair = entry.get_ref<const std::string&>();
                const size_t space = pair.find(' ');
                left = pair.substr(0, space);
                if (space != std::string::npos) right = pair.substr(space + 1);
            } else if (entry.is_array() && entry.size() == 2 && entry[0].is_string() &&
                       entry[1].is_string()) {
                left = entry[0].get<std::string>();
                right = entry[1].get<std::string>();
            }
            LEVIN_REQUIRE(!left.empty() && !right.empty(), name_,
                          "merge {} is {}, expected \"a b\" or [\"a\", \"b\"]", merges.size(), entry.dump());
            const auto id = [&](const std::string& token) {
                const auto at = ids.find(token);
                LEVIN_REQUIRE(at != ids.end(), name_,
                              "merge {} ({}) needs the token \"{}\", which the vocabulary lacks",
                              merges.size(), entry.dump(), token);
                return at->second;
            };
            merges.push_back({id(left), id(right), id(left + right)});
        }
        return merges;
    }

    void read_added_tokens(const Json& json) {
        LEVIN_REQUIRE(json.is_array() || json.is_null(), name_, "\"added_tokens\" is no list");
        for (const Json& entry : json) {
            LEVIN_REQUIRE(entry.is_object(), name_, "an added token is {}, expected an object", entry.dump());
            const Json content = entry.value("content", Json()), id = entry.value("id", Json());
            LEVIN_REQUIRE(
                content.is_string() && !content.get<std::string>().empty() && id.is_number_integer(), name_,
                "the added token {} has no content or no id", entry.dump());
            const auto is = [&](const char* key) { return entry.value(key, Json(false)) == true; };
            LEVIN_REQUIRE(!is("single_word"), name_,
                          "the added token {} has single_word, which is not supported", content.dump());
            AddedToken token{content.get<std::string>(), 0, is("special"), is("lstrip"), is("rstrip")};
            set_token(id.get<int64_t>(), token.content, token.special ? "" : token.content);
            token.id = id.get<int32_t>();
            if (first_bytes_.find(token.content[0]) == std::string::npos) first_bytes_ += token.content[0];
            added_.push_back(std::move(token));
        }
        std::stable_sort(added_.begin(), added_.end(), [](const AddedToken& a, const AddedToken& b) {
            return a.content.size() > b.content.size();
        });
    }

    int32_t id_of_name(const std::string& name) const {
        const auto at = std::find(names_.begin(), names_.end(), name);
        return at == names_.end() || name.empty() ? -1 : static_cast<int32_t>(at - names_.begin());
    }

    void read_config(const std::string& config_json) {
        const Json config = config_json.empty() ? Json::object() : Json::parse(config_json, nullptr, false);
        LEVIN_REQUIRE(config.is_object(), name_, "the tokenizer_config.json beside it is no JSON object");
        const auto id = [&](const char* key, std::initializer_list<const char*> customary) {
            Json token = config.value(key, Json());
            if (token.is_object()) token = token.value("content", Json());
            if (token.is_string()) return id_of_name(token.get<std::string>());
            for (const char* name : customary) {
                for (const AddedToken& added : added_) {
                    if (added.content == name) return added.id;
                }
            }
            return -1;
        };
        bos_id_ = id("bos_token", {"<s>", "<|begin_of_text|>", "<|startoftext|>"});
        eos_id_ = id("eos_token", {"</s>", "<|end_of_text|>", "<|endoftext|>"});
        pad_id_ = id("pad_token", {"<pad>", "<|pad|>"});
        const Json chat = config.value("chat_template", Json());
        if (chat.is_string()) chat_template_ = chat.get<std::string>();
    }

    std::string text_, name_, chat_template_;
    bool nfc_ = false;
    std::unique_ptr<Pretokenizer> pretokenizer_;
    std::unique_ptr<BpeModel> model_;
    std::vector<std::string> names_, bytes_;  // by id
    std::vector<AddedToken> added_;
    std::string first_bytes_;  // the bytes an added token can begin with
    mutable ScratchPool<Scratch> pool_;
};

}  // namespace

std::unique_ptr<Tokenizer> make_bpe_tokenizer(std::string tokenizer_json, const std::string& config_json,
                                              const std::string& name) {
    return std::make_unique<BpeTokenizer>(std::move(tokenizer_json), config_json, name);
}

}  // namespace levin
