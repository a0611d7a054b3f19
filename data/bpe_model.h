// The merge rules of a byte-level BPE (Sennrich et al., arXiv 1508.07909), applied exactly: in a word, the
// pair with the lowest rank is merged first, the leftmost among equals, until no rule applies.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "data/word_cache.h"

namespace levin {

class BpeModel {
public:
    struct Merge {
        int32_t left, right, result;
    };
    // What one thread needs while encoding: room, and a cache of words met before. Not shared between
    // threads.
    struct Scratch {
        WordCache cache;
        std::vector<int32_t> symbols;
    };

    // byte_ids[b]: the token of byte b, -1 when the vocabulary lacks it. `merges` by rank. `words`: the ids
    // of whole words, as bytes, that are looked up before any merge ("ignore_merges"); empty when the
    // vocabulary asks for none.
    BpeModel(const std::vector<int32_t>& byte_ids, const std::vector<Merge>& merges,
             std::unordered_map<std::string, int32_t> words, std::string name);

    // Appends the tokens of one word (what the pre-tokenizer cut out), given as bytes.
    void encode_word(std::string_view word, Scratch& scratch, std::vector<int32_t>& out) const;

private:
    struct Rule {
        uint64_t pair = ~uint64_t{0};  // left << 32 | right
        int32_t rank = 0, result = 0;
    };

    const Rule* find(int32_t left, int32_t right) const;
    void merge_short(std::vector<int32_t>& symbols) const;
    void merge_long(std::vector<int32_t>& symbols) const;

    std::vector<int32_t> byte_ids_;
    std::vector<Rule> table_;  // open addressing, a power of two in size, at most half full
    uint64_t mask_ = 0;
    std::unordered_map<std::string, int32_t> words_;
    std::string name_;
};

}  // namespace levin
