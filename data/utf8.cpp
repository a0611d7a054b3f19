#include "data/utf8.h"

#include <cstring>

namespace levin {

Utf8Character next_character(std::string_view text, size_t at) {
    const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[at + i]); };
    const uint8_t first = byte(0);
    if (first < 0x80) return {Utf8Status::good, 1, first};
    if (first < 0xC2 || first > 0xF4) return {Utf8Status::invalid, 1, 0};
    const uint32_t size = first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
    uint32_t code = first & (0x7Fu >> size);
    for (uint32_t i = 1; i < size; ++i) {
        if (at + i >= text.size()) return {Utf8Status::truncated, i, 0};
        uint8_t low = 0x80, high = 0xBF;
        if (i == 1) {  // these four second bytes are what keeps overlong forms and surrogates out
            if (first == 0xE0) low = 0xA0;
            if (first == 0xED) high = 0x9F;
            if (first == 0xF0) low = 0x90;
            if (first == 0xF4) high = 0x8F;
        }
        if (byte(i) < low || byte(i) > high) return {Utf8Status::invalid, i, 0};
        code = (code << 6) | (byte(i) & 0x3Fu);
    }
    return {Utf8Status::good, size, code};
}

Utf8Character previous_character(std::string_view text, size_t end) {
    for (size_t size = 1; size <= 4 && size <= end; ++size) {
        if ((static_cast<uint8_t>(text[end - size]) & 0xC0) == 0x80) continue;  // not the first byte
        const Utf8Character c = next_character(text.substr(0, end), end - size);
        if (c.size == size) return c;
        break;
    }
    return {Utf8Status::invalid, 1, 0};
}

bool is_unicode_space(uint32_t code) {
    return code == ' ' || (code >= '\t' && code <= '\r') || code == 0x85 || code == 0xA0 || code == 0x1680 ||
           (code >= 0x2000 && code <= 0x200A) || code == 0x2028 || code == 0x2029 || code == 0x202F ||
           code == 0x205F || code == 0x3000;
}

size_t valid_utf8_prefix(std::string_view text) {
    size_t at = 0;
    while (at < text.size()) {
        while (at + 8 <= text.size()) {  // most text is ASCII: eight bytes at a time
            uint64_t word;
            std::memcpy(&word, text.data() + at, 8);
            if ((word & 0x8080808080808080u) != 0) break;
            at += 8;
        }
        if (at == text.size()) break;
        const Utf8Character c = next_character(text, at);
        if (c.status != Utf8Status::good) break;
        at += c.size;
    }
    return at;
}

std::string replace_invalid_utf8(std::string_view text, int64_t& count) {
    std::string out;
    out.reserve(text.size());
    size_t at = 0;
    while (at < text.size()) {
        const size_t good = valid_utf8_prefix(text.substr(at));
        out.append(text, at, good);
        at += good;
        if (at == text.size()) break;
        out += kReplacementCharacter;
        ++count;
        at += next_character(text, at).size;
    }
    return out;
}

}  // namespace levin
