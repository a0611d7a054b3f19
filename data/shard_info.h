// PREFIX.json, which the builder writes beside a shard: what the token ids mean.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace levin {

struct ShardInfo {
    int64_t vocab_size = 0;
    std::string tokenizer_kind;                     // "byte", "sentencepiece" or "bpe"
    std::string tokenizer_file;                     // name of the copy beside the shard; empty for "byte"
    int32_t bos_id = -1, eos_id = -1, pad_id = -1;  // -1: the tokenizer has none
    int64_t num_tokens = 0;
    int64_t num_documents = 0;
    bool append_eos = false;
    std::string input_hash;  // XXH3, 128 bits, of the decompressed inputs
};

std::string to_json(const ShardInfo& info);
// Reads PREFIX.json; empty when there is none. Throws Error(input) when it is there but makes no sense.
std::optional<ShardInfo> read_shard_info(const std::string& prefix);

}  // namespace levin
