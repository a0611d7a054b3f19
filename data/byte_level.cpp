#include "data/byte_level.h"

#include <nlohmann/json.hpp>

#include "data/utf8.h"

namespace levin {

namespace {

constexpr bool stands_for_itself(int byte) {
    return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || (byte >= 0xAE && byte <= 0xFF);
}

struct Alphabet {
    std::array<std::string, 256> characters;
    std::array<int16_t, 0x144> byte_of;  // by code point; -1: none
    Alphabet() {
        byte_of.fill(-1);
        uint32_t next = 0x100;
        for (int byte = 0; byte < 256; ++byte) {
            const uint32_t code = stands_for_itself(byte) ? static_cast<uint32_t>(byte) : next++;
            byte_of[code] = static_cast<int16_t>(byte);
            std::string& text = characters[static_cast<size_t>(byte)];
            if (code < 0x80) {
                text = std::string(1, static_cast<char>(code));
            } else {
                text = {static_cast<char>(0xC0 | (code >> 6)), static_cast<char>(0x80 | (code & 0x3F))};
            }
        }
    }
};

const Alphabet& alphabet() {
    static const Alphabet instance;
    return instance;
}

}  // namespace

const std::array<std::string, 256>& byte_level_characters() { return alphabet().characters; }

bool from_byte_level(std::string_view token, std::string& bytes) {
    bytes.clear();
    const auto& byte_of = alphabet().byte_of;
    for (size_t at = 0; at < token.size();) {
        const Utf8Character c = next_character(token, at);
        if (c.status != Utf8Status::good || c.code >= byte_of.size() || byte_of[c.code] < 0) return false;
        bytes.push_back(static_cast<char>(byte_of[c.code]));
        at += c.size;
    }
    return true;
}

std::string tokenizer_config_json(const TokenizerConfigNames& names) {
    nlohmann::ordered_json json;
    json["tokenizer_class"] = names.tokenizer_class;
    json["clean_up_tokenization_spaces"] = false;
    const auto add = [&](const char* key, const std::string& value) {
        if (!value.empty()) json[key] = value;
    };
    add("bos_token", names.bos);
    add("eos_token", names.eos);
    add("pad_token", names.pad);
    add("unk_token", names.unk);
    add("chat_template", names.chat_template);
    return json.dump(2) + "\n";
}

}  // namespace levin
