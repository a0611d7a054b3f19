// UTF-8 as Unicode defines it (table 3-7: no overlong forms, no surrogates, nothing above U+10FFFF).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace levin {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

enum class Utf8Status { good, invalid, truncated };

// The character that begins text[at]. good: size 1 to 4 and its code point. invalid: size is the number of
// bytes one U+FFFD stands for (the longest beginning of a character, at least 1). truncated: the text ends
// inside a character that is right so far; size is what is there.
struct Utf8Character {
    Utf8Status status;
    uint32_t size;
    uint32_t code;
};
Utf8Character next_character(std::string_view text, size_t at);

// The same for the character that ends just before text[end], end > 0; invalid when the bytes there are none.
Utf8Character previous_character(std::string_view text, size_t end);

// Unicode's White_Space property.
bool is_unicode_space(uint32_t code);

// Number of leading bytes that are valid UTF-8 (whole characters).
size_t valid_utf8_prefix(std::string_view text);

// Replaces what is invalid by U+FFFD and adds the number of replacements to `count`. A character that the end
// of the text cuts off counts as invalid.
std::string replace_invalid_utf8(std::string_view text, int64_t& count);

}  // namespace levin
