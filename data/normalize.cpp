#include "data/normalize.h"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <unordered_map>
#include <vector>

#include "data/utf8.h"

namespace levin {

namespace {

struct Decomposition {
    uint32_t code, first, second;
    int composes;
};
struct CombiningClass {
    uint32_t first, last;
    uint8_t value;
};
struct Range {
    uint32_t first, last;
};
#include "data/normalize_tables.inc"

// Hangul syllables are composed by arithmetic (Unicode chapter 3.12).
constexpr uint32_t kSyllable = 0xAC00, kLeading = 0x1100, kVowel = 0x1161, kTrailing = 0x11A7;
constexpr uint32_t kVowels = 21, kTrailings = 28, kLeadings = 19,
                   kSyllables = kLeadings * kVowels * kTrailings;

template <class Table>
auto find_range(const Table& table, uint32_t code) {
    const auto at = std::upper_bound(std::begin(table), std::end(table), code,
                                     [](uint32_t c, const auto& range) { return c < range.first; });
    if (at == std::begin(table) || code > std::prev(at)->last) return std::end(table);
    return std::prev(at);
}

uint8_t combining_class(uint32_t code) {
    if (code < 0x300) return 0;
    const auto at = find_range(kCombiningClasses, code);
    return at == std::end(kCombiningClasses) ? 0 : at->value;
}

void decompose(uint32_t code, std::vector<uint32_t>& out) {
    if (code - kSyllable < kSyllables) {
        const uint32_t index = code - kSyllable;
        out.push_back(kLeading + index / (kVowels * kTrailings));
        out.push_back(kVowel + index % (kVowels * kTrailings) / kTrailings);
        if (index % kTrailings != 0) out.push_back(kTrailing + index % kTrailings);
        return;
    }
    const auto at = std::lower_bound(std::begin(kDecompositions), std::end(kDecompositions), code,
                                     [](const Decomposition& d, uint32_t c) { return d.code < c; });
    if (at == std::end(kDecompositions) || at->code != code) {
        out.push_back(code);
        return;
    }
    decompose(at->first, out);
    if (at->second != 0) decompose(at->second, out);
}

// The composed character of a pair, 0 when there is none.
uint32_t compose(uint32_t first, uint32_t second) {
    if (first - kLeading < kLeadings && second - kVowel < kVowels) {
        return kSyllable + ((first - kLeading) * kVowels + second - kVowel) * kTrailings;
    }
    if (first - kSyllable < kSyllables && (first - kSyllable) % kTrailings == 0 && second > kTrailing &&
        second < kTrailing + kTrailings) {
        return first + second - kTrailing;
    }
    static const std::unordered_map<uint64_t, uint32_t> pairs = [] {
        std::unordered_map<uint64_t, uint32_t> map;
        for (const Decomposition& d : kDecompositions) {
            if (d.composes != 0) map.emplace(uint64_t{d.first} << 32 | d.second, d.code);
        }
        return map;
    }();
    const auto at = pairs.find(uint64_t{first} << 32 | second);
    return at == pairs.end() ? 0 : at->second;
}

void append_utf8(uint32_t code, std::string& out) {
    if (code < 0x80) {
        out += static_cast<char>(code);
        return;
    }
    const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    constexpr uint32_t kLead[] = {0, 0xC0, 0xE0, 0xF0};
    out += static_cast<char>(kLead[more] | code >> (6 * more));
    for (int i = more - 1; i >= 0; --i) out += static_cast<char>(0x80 | (code >> (6 * i) & 0x3F));
}

}  // namespace

bool is_nfc_quick(std::string_view text) {
    for (size_t at = 0; at < text.size();) {
        if (static_cast<uint8_t>(text[at]) < 0xCC) {  // below U+0300
            ++at;
            continue;
        }
        const Utf8Character c = next_character(text, at);
        if (find_range(kNotQuick, c.code) != std::end(kNotQuick)) return false;
        at += c.size;
    }
    return true;
}

std::string to_nfc(std::string_view text) {
    std::vector<uint32_t> codes;
    codes.reserve(text.size());
    for (size_t at = 0; at < text.size();) {
        const Utf8Character c = next_character(text, at);
        decompose(c.code, codes);
        at += c.size;
    }
    for (size_t begin = 0; begin < codes.size();) {  // order each run of marks by class
        size_t end = begin;
        while (end < codes.size() && combining_class(codes[end]) != 0) ++end;
        std::stable_sort(codes.begin() + static_cast<std::ptrdiff_t>(begin),
                         codes.begin() + static_cast<std::ptrdiff_t>(end),
                         [](uint32_t a, uint32_t b) { return combining_class(a) < combining_class(b); });
        begin = end + 1;
    }
    size_t kept = 0, starter = SIZE_MAX;
    uint8_t last_class = 0;
    for (const uint32_t code : codes) {
        const uint8_t value = combining_class(code);
        // A mark reaches the starter unless one of its own class, or another starter, stands between.
        const bool blocked =
            starter == SIZE_MAX || (kept - starter > 1 && (last_class == 0 || last_class >= value));
        if (!blocked) {
            if (const uint32_t pair = compose(codes[starter], code); pair != 0) {
                codes[starter] = pair;
                continue;
            }
        }
        if (value == 0) starter = kept;
        last_class = value;
        codes[kept++] = code;
    }
    codes.resize(kept);
    std::string out;
    out.reserve(text.size());
    for (const uint32_t code : codes) append_utf8(code, out);
    return out;
}

}  // namespace levin
