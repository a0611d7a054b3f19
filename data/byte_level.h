// The byte-level alphabet of GPT-2: every byte is written as one printable character of Unicode, so that a
// vocabulary of bytes can be a JSON file. Printable Latin-1 bytes stand for themselves, the other 68 are
// U+0100, U+0101, ..
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace levin {

// UTF-8 of the character that stands for each byte.
const std::array<std::string, 256>& byte_level_characters();
// The bytes that a token written in that alphabet stands for; false when it holds another character.
bool from_byte_level(std::string_view token, std::string& bytes);

// tokenizer_config.json for transformers' PreTrainedTokenizerFast or another class; names that are empty are
// left out.
struct TokenizerConfigNames {
    std::string tokenizer_class, bos, eos, pad, unk, chat_template;
};
std::string tokenizer_config_json(const TokenizerConfigNames& names);

}  // namespace levin
