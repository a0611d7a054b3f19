#include "data/sentencepiece_export.h"

#include <algorithm>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <unordered_map>
#include <vector>

namespace levin {

namespace {

// Fields of a Protocol Buffers message, one after the other; stops at anything malformed.
class Fields {
public:
    explicit Fields(std::string_view message) : rest_(message) {}

    uint64_t number = 0, value = 0;  // value of a varint field
    std::string_view bytes;          // content of a length-delimited field

    bool next() {
        uint64_t tag = 0;
        bytes = {};
        if (rest_.empty() || !varint(tag)) return false;
        number = tag >> 3;
        switch (tag & 7) {
            case 0:
                return varint(value);
            case 1:
                return take(8);
            case 2:
                return varint(value) && take(value);
            case 5:
                return take(4);
            default:
                return false;
        }
    }

private:
    bool varint(uint64_t& out) {
        out = 0;
        for (unsigned shift = 0; shift < 64; shift += 7) {
            if (rest_.empty()) return false;
            const auto byte = static_cast<uint8_t>(rest_[0]);
            rest_.remove_prefix(1);
            out |= static_cast<uint64_t>(byte & 0x7F) << shift;
            if (byte < 0x80) return true;
        }
        return false;
    }
    bool take(uint64_t size) {
        if (size > rest_.size()) return false;
        bytes = rest_.substr(0, size);
        rest_.remove_prefix(size);
        return true;
    }

    std::string_view rest_;
};

// The merges of a BPE model, which stores only their results: a piece is made of any two pieces that it is
// the concatenation of; pieces with higher scores are made first.
nlohmann::ordered_json merges_of(const sentencepiece::SentencePieceProcessor& processor) {
    std::unordered_map<std::string_view, int> ids;
    const int size = processor.GetPieceSize();
    const auto is_ordinary = [&](int id) {
        return !processor.IsControl(id) && !processor.IsUnknown(id) && !processor.IsByte(id) &&
               !processor.IsUnused(id);
    };
    for (int id = 0; id < size; ++id) {
        if (is_ordinary(id)) ids.emplace(processor.IdToPiece(id), id);
    }
    struct Merge {
        float score;
        int left, right;
    };
    std::vector<Merge> merges;
    for (int id = 0; id < size; ++id) {
        if (!is_ordinary(id)) continue;
        const std::string_view piece = processor.IdToPiece(id);
        for (size_t at = 1; at < piece.size(); ++at) {
            const auto left = ids.find(piece.substr(0, at)), right = ids.find(piece.substr(at));
            if (left != ids.end() && right != ids.end()) {
                merges.push_back({processor.GetScore(id), left->second, right->second});
            }
        }
    }
    std::stable_sort(merges.begin(), merges.end(),
                     [](const Merge& a, const Merge& b) { return a.score > b.score; });
    auto json = nlohmann::ordered_json::array();
    for (const Merge& merge : merges) {
        json.push_back({processor.IdToPiece(merge.left), processor.IdToPiece(merge.right)});
    }
    return json;
}

nlohmann::ordered_json unigram_model(const sentencepiece::SentencePieceProcessor& processor) {
    auto vocab = nlohmann::ordered_json::array();
    for (int id = 0; id < processor.GetPieceSize(); ++id) {
        vocab.push_back({processor.IdToPiece(id), processor.GetScore(id)});
    }
    return {{"type", "Unigram"}, {"unk_id", processor.unk_id()}, {"vocab", vocab}, {"byte_fallback", true}};
}

nlohmann::ordered_json bpe_model(const sentencepiece::SentencePieceProcessor& processor) {
    nlohmann::ordered_json vocab;
    for (int id = 0; id < processor.GetPieceSize(); ++id) vocab[processor.IdToPiece(id)] = id;
    return {{"type", "BPE"},
            {"dropout", nullptr},
            {"unk_token", processor.IdToPiece(processor.unk_id())},
            {"continuing_subword_prefix", nullptr},
            {"end_of_word_suffix", nullptr},
            {"fuse_unk", true},
            {"byte_fallback", true},
            {"vocab", vocab},
            {"merges", merges_of(processor)}};
}

}  // namespace

SentencePieceTraits sentencepiece_traits(std::string_view model) {
    SentencePieceTraits traits;
    bool removes_spaces = true, has_map = false;  // the defaults of the format
    for (Fields outer(model); outer.next();) {
        for (Fields inner(outer.bytes); outer.number >= 1 && outer.number <= 3 && inner.next();) {
            if (outer.number == 1 && inner.number == 3 && inner.value == 4) traits.user_defined = true;
            if (outer.number == 2 && inner.number == 3) traits.unigram = inner.value == 1;
            if (outer.number == 2 && inner.number == 35) traits.byte_fallback = inner.value != 0;
            if (outer.number == 3 && inner.number == 2) has_map = !inner.bytes.empty();
            if (outer.number == 3 && inner.number == 3) traits.dummy_prefix = inner.value != 0;
            if (outer.number == 3 && inner.number == 4) removes_spaces = inner.value != 0;
        }
    }
    traits.identity_normalizer = !removes_spaces && !has_map;
    return traits;
}

std::string sentencepiece_tokenizer_json(const sentencepiece::SentencePieceProcessor& processor,
                                         std::string_view model) {
    using Json = nlohmann::ordered_json;
    const SentencePieceTraits traits = sentencepiece_traits(model);
    if (!traits.identity_normalizer || !traits.byte_fallback || !traits.dummy_prefix || traits.user_defined)
        return "";
    if (processor.unk_id() < 0 || processor.unk_id() >= processor.GetPieceSize()) return "";
    Json added = Json::array();
    for (int id = 0; id < processor.GetPieceSize(); ++id) {
        if (!processor.IsControl(id) && !processor.IsUnknown(id)) continue;
        added.push_back({{"id", id},
                         {"content", processor.IdToPiece(id)},
                         {"single_word", false},
                         {"lstrip", false},
                         {"rstrip", false},
                         {"normalized", false},
                         {"special", true}});
    }
    const std::string mark = "\xE2\x96\x81";
    const auto list = [](std::initializer_list<Json> steps, const char* key) {
        return Json{{"type", "Sequence"}, {key, Json(steps)}};
    };
    Json json;
    json["version"] = "1.0";
    json["truncation"] = nullptr;
    json["padding"] = nullptr;
    json["added_tokens"] = added;
    json["normalizer"] = list({Json{{"type", "Prepend"}, {"prepend", mark}},
                               Json{{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", mark}}},
                              "normalizers");
    json["pre_tokenizer"] = nullptr;
    json["post_processor"] = nullptr;
    json["decoder"] = list({Json{{"type", "Replace"}, {"pattern", {{"String", mark}}}, {"content", " "}},
                            Json{{"type", "ByteFallback"}}, Json{{"type", "Fuse"}},
                            Json{{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}}},
                           "decoders");
    json["model"] = traits.unigram ? unigram_model(processor) : bpe_model(processor);
    return json.dump(1) + "\n";
}

}  // namespace levin
