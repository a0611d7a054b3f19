#include "data/validation_split.h"

#include <algorithm>
#include <cmath>

#include "data/counter_hash.h"
#include "kernels/base/error.h"

namespace levin {

namespace {

constexpr uint64_t kChoiceKey =
    0x76616C6964617465u;  // any constant: the choice depends on document numbers alone

// Copies tokens [first, first + count) of a token file in blocks.
void copy_tokens(const TokenSource& from, int64_t first, int64_t count, MegatronShardWriter& to) {
    constexpr int64_t kBlock = 1 << 18;
    std::vector<int32_t> block(static_cast<size_t>(std::min(kBlock, count)));
    while (count > 0) {
        const int64_t n = std::min(kBlock, count);
        from.read(first, n, INT32_MAX, block.data());
        to.append({block.data(), static_cast<size_t>(n)});
        first += n;
        count -= n;
    }
}

}  // namespace

ValidationChoice choose_validation(const std::vector<int64_t>& document_lengths, double fraction) {
    ValidationChoice choice;
    choice.documents.resize(document_lengths.size());
    const auto threshold = static_cast<uint64_t>(std::ldexp(fraction, 63)) * 2;
    int64_t total = 0, chosen = 0;
    for (size_t d = 0; d < document_lengths.size(); ++d) {
        choice.documents[d] = counter_hash(kChoiceKey, d) < threshold;
        total += document_lengths[d];
        if (choice.documents[d]) chosen += document_lengths[d];
    }
    const double wanted = fraction * static_cast<double>(total);
    const auto share = static_cast<double>(chosen);
    if (share < wanted / 2 || share > wanted * 2 || chosen == 0 || chosen == total) {
        choice.documents.clear();
        choice.tail = std::clamp<int64_t>(std::llround(wanted), 1, std::max<int64_t>(1, total - 1));
    }
    return choice;
}

std::pair<std::unique_ptr<MegatronShardWriter>, std::unique_ptr<MegatronShardWriter>> split_validation(
    std::unique_ptr<MegatronShardWriter> shard, const std::string& prefix,
    const std::string& validation_prefix, TokenType type, double fraction) {
    LEVIN_REQUIRE(shard->num_tokens() >= 2, "data",
                  "the corpus has {} token(s), too few for a validation set", shard->num_tokens());
    const std::vector<int64_t>& lengths = shard->document_lengths();
    const ValidationChoice choice = choose_validation(lengths, fraction);
    std::vector<int64_t> starts{0};
    starts.reserve(lengths.size() + 1);
    for (const int64_t length : lengths) starts.push_back(starts.back() + length);
    const std::string path = shard->flushed_token_file();
    auto table = std::make_unique<ContiguousDocuments>(starts, 0, width_of(type));
    const TokenSource all(path, MappedFile(path), type, std::move(table));

    auto training = std::make_unique<MegatronShardWriter>(prefix, type);
    auto validation = std::make_unique<MegatronShardWriter>(validation_prefix, type);
    const int64_t border = all.num_tokens() - choice.tail;  // used without a choice of documents
    for (size_t d = 0; d < lengths.size(); ++d) {
        const int64_t begin = starts[d], end = starts[d + 1];
        int64_t middle;  // tokens before it are for training
        if (choice.documents.empty()) {
            middle = std::clamp(border, begin, end);
        } else {
            middle = choice.documents[d] ? begin : end;
        }
        if (middle > begin) {
            copy_tokens(all, begin, middle - begin, *training);
            training->end_document();
        }
        if (end > middle) {
            copy_tokens(all, middle, end - middle, *validation);
            validation->end_document();
        }
    }
    return {std::move(training), std::move(validation)};
}

}  // namespace levin
