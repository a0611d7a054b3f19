// Sets part of a corpus aside for evaluation.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "data/megatron_shard.h"

namespace levin {

// Which documents go to the validation set, by their number alone. Where that gives less than half or more
// than twice `fraction` of the tokens (few documents, or a huge one), the set is the end of the corpus
// instead: `tail` tokens.
struct ValidationChoice {
    std::vector<bool> documents;  // empty: the tail
    int64_t tail = 0;
};
ValidationChoice choose_validation(const std::vector<int64_t>& document_lengths, double fraction);

// Divides what `shard` holds (not committed yet) into a training and a validation shard, also not committed.
// Throws Error(input) when the corpus is too small to divide.
std::pair<std::unique_ptr<MegatronShardWriter>, std::unique_ptr<MegatronShardWriter>> split_validation(
    std::unique_ptr<MegatronShardWriter> shard, const std::string& prefix,
    const std::string& validation_prefix, TokenType type, double fraction);

}  // namespace levin
