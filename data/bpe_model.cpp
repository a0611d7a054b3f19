#include "data/bpe_model.h"

#include <bit>
#include <queue>

#include "kernels/base/error.h"

namespace levin {

namespace {

// Below this many symbols scanning all pairs for the best one is faster than a queue.
constexpr size_t kScanLimit = 48;

uint64_t pair_of(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

uint64_t mix(uint64_t x) {
    x *= 0x9E3779B97F4A7C15u;
    return x ^ (x >> 32);
}

}  // namespace

BpeModel::BpeModel(const std::vector<int32_t>& byte_ids, const std::vector<Merge>& merges,
                   std::unordered_map<std::string, int32_t> words, std::string name)
    : byte_ids_(byte_ids), words_(std::move(words)), name_(std::move(name)) {
    table_.resize(std::bit_ceil(2 * merges.size() + 16));
    mask_ = table_.size() - 1;
    for (size_t rank = 0; rank < merges.size(); ++rank) {
        const uint64_t pair = pair_of(merges[rank].left, merges[rank].right);
        uint64_t slot = mix(pair) & mask_;
        while (table_[slot].pair != ~uint64_t{0} && table_[slot].pair != pair) slot = (slot + 1) & mask_;
        // A rule given twice has the rank of its last place, as in Hugging Face tokenizers.
        table_[slot] = {pair, static_cast<int32_t>(rank), merges[rank].result};
    }
}

const BpeModel::Rule* BpeModel::find(int32_t left, int32_t right) const {
    const uint64_t pair = pair_of(left, right);
    for (uint64_t slot = mix(pair) & mask_;; slot = (slot + 1) & mask_) {
        if (table_[slot].pair == pair) return &table_[slot];
        if (table_[slot].pair == ~uint64_t{0}) return nullptr;
    }
}

void BpeModel::merge_short(std::vector<int32_t>& symbols) const {
    const Rule* rules[kScanLimit];  // the rule of symbols i and i + 1
    size_t n = symbols.size();
    for (size_t i = 0; i + 1 < n; ++i) rules[i] = find(symbols[i], symbols[i + 1]);
    while (n > 1) {
        const Rule* best = nullptr;
        size_t at = 0;
        for (size_t i = 0; i + 1 < n; ++i) {
            if (rules[i] != nullptr && (best == nullptr || rules[i]->rank < best->rank))
                best = rules[i], at = i;
        }
        if (best == nullptr) break;
        symbols[at] = best->result;
        for (size_t i = at + 1; i + 1 < n; ++i) {
            symbols[i] = symbols[i + 1];
            rules[i] = rules[i + 1];
        }
        --n;
        if (at > 0) rules[at - 1] = find(symbols[at - 1], symbols[at]);
        if (at + 1 < n) rules[at] = find(symbols[at], symbols[at + 1]);
    }
    symbols.resize(n);
}

void BpeModel::merge_long(std::vector<int32_t>& symbols) const {
    struct Candidate {
        int32_t rank;
        size_t at;
        uint64_t pair;
        int32_t result;
        bool operator>(const Candidate& other) const {
            return rank != other.rank ? rank > other.rank : at > other.at;
        }
    };
    const size_t n = symbols.size(), none = n;
    std::vector<size_t> next(n), before(n);
    std::vector<bool> gone(n, false);
    std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
    const auto offer = [&](size_t left, size_t right) {
        if (const Rule* rule = find(symbols[left], symbols[right])) {
            queue.push({rule->rank, left, rule->pair, rule->result});
        }
    };
    for (size_t i = 0; i < n; ++i) {
        next[i] = i + 1;
        before[i] = i == 0 ? none : i - 1;
        if (i + 1 < n) offer(i, i + 1);
    }
    while (!queue.empty()) {
        const Candidate top = queue.top();
        queue.pop();
        if (gone[top.at] || next[top.at] == none) continue;
        const size_t right = next[top.at];
        if (pair_of(symbols[top.at], symbols[right]) != top.pair)
            continue;  // one of the two was merged since
        symbols[top.at] = top.result;
        gone[right] = true;
        next[top.at] = next[right];
        if (next[right] != none) before[next[right]] = top.at;
        if (before[top.at] != none) offer(before[top.at], top.at);
        if (next[top.at] != none) offer(top.at, next[top.at]);
    }
    size_t kept = 0;
    for (size_t i = 0; i < n; ++i) {
        if (!gone[i]) symbols[kept++] = symbols[i];
    }
    symbols.resize(kept);
}

void BpeModel::encode_word(std::string_view word, Scratch& scratch, std::vector<int32_t>& out) const {
    if (word.empty()) return;
    if (const WordCache::Tokens known = scratch.cache.find(word); known.ids != nullptr) {
        out.insert(out.end(), known.ids, known.ids + known.count);
        return;
    }
    std::vector<int32_t>& symbols = scratch.symbols;
    symbols.clear();
    if (!words_.empty()) {
        if (const auto at = words_.find(std::string(word)); at != words_.end()) symbols.push_back(at->second);
    }
    if (symbols.empty()) {
        for (const char c : word) {
            const int32_t id = byte_ids_[static_cast<uint8_t>(c)];
            LEVIN_REQUIRE(
                id >= 0, name_,
                "the vocabulary has no token for byte {:#04x}, which the text contains; take a tokenizer "
                "whose vocabulary holds all 256 bytes",
                static_cast<unsigned>(static_cast<uint8_t>(c)));
            symbols.push_back(id);
        }
        symbols.size() <= kScanLimit ? merge_short(symbols) : merge_long(symbols);
    }
    out.insert(out.end(), symbols.begin(), symbols.end());
    scratch.cache.put(word, symbols);
}

}  // namespace levin
