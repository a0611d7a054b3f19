#include "parallel/context_parallel/chunks.h"

#include <algorithm>

#include "core/transfer.h"

namespace levin {

int64_t SequenceChunks::longest() const {
    int64_t most = 0;
    for (int64_t r = 0; r < ranks(); ++r) most = std::max(most, length_of(r));
    return most;
}

int64_t SequenceChunks::distance(int64_t from, int64_t to) const {
    const int64_t end = starts[static_cast<size_t>(from) + 1];
    return document_starts[static_cast<size_t>(to)] < end ? starts[static_cast<size_t>(to)] - end : -1;
}

ops::TokenLayout chunk_layout(int64_t batch, int64_t length, const std::vector<int32_t>& borders, int rank,
                              int ranks, const Device& device) {
    const bool packed = !borders.empty();
    const int64_t row = packed ? batch * length : length;
    LEVIN_REQUIRE(
        row >= ranks, "parallel",
        "sequences of {} tokens on parallel.cp={} ranks: each needs a token at least; set parallel.cp "
        "to {} or less, or use longer sequences",
        row, ranks, row);
    const auto tensor = [&](const std::vector<int32_t>& values) {
        return upload({static_cast<int64_t>(values.size())}, values, device);
    };
    if (ranks == 1 && !packed) return {.batch = batch, .length = length};
    if (ranks == 1)
        return {.batch = 1,
                .length = row,
                .cu_seqlens = tensor(borders),
                .borders = std::make_shared<const std::vector<int32_t>>(borders)};
    auto chunks = std::make_shared<SequenceChunks>();
    chunks->rank = rank;
    for (int64_t r = 0; r <= ranks; ++r) chunks->starts.push_back(row * r / ranks);
    // The document of a token: the last border at or before it.
    const auto document_start = [&](int64_t token) -> int64_t {
        if (!packed) return 0;
        return *(std::upper_bound(borders.begin(), borders.end(), token) - 1);
    };
    for (int64_t r = 0; r < ranks; ++r)
        chunks->document_starts.push_back(document_start(chunks->starts[static_cast<size_t>(r)]));

    const int64_t begin = chunks->starts[static_cast<size_t>(rank)],
                  end = chunks->starts[static_cast<size_t>(rank) + 1];
    ops::TokenLayout layout{
        .batch = packed ? 1 : batch, .length = end - begin, .first_position = begin, .chunks = chunks};
    const bool enters = rank > 0 && document_start(begin) < begin;
    const bool leaves = rank + 1 < ranks && document_start(end) < end;
    if (!packed) {
        chunks->segments = {
            {.begin = 0, .length = end - begin, .enters = rank > 0, .leaves = rank + 1 < ranks}};
        return layout;
    }
    std::vector<int32_t> own{0};
    for (const int32_t border : borders)
        if (border > begin && border < end) own.push_back(static_cast<int32_t>(border - begin));
    own.push_back(static_cast<int32_t>(end - begin));
    layout.cu_seqlens = tensor(own);
    const int64_t before = begin - document_start(begin);
    std::vector<int32_t> keys{0};
    for (size_t i = 1; i < own.size(); ++i) keys.push_back(static_cast<int32_t>(own[i] + before));
    chunks->key_cu_seqlens = tensor(keys);

    // At most three segments: the end of a document that began earlier, whole documents, and the beginning of
    // one that goes on; or one document that is cut at both ends.
    const size_t documents = own.size() - 1;
    const auto add = [&](size_t first, size_t last, bool in, bool out) {
        SequenceChunks::Segment segment{
            .begin = own[first], .length = own[last] - own[first], .enters = in, .leaves = out};
        if (last - first > 1) {
            std::vector<int32_t> inner;
            for (size_t i = first; i <= last; ++i) inner.push_back(own[i] - own[first]);
            segment.cu_seqlens = tensor(inner);
        }
        chunks->segments.push_back(segment);
    };
    if (documents == 1) {
        add(0, 1, enters, leaves);
        return layout;
    }
    const size_t first = enters ? 1 : 0, last = leaves ? documents - 1 : documents;
    if (enters) add(0, 1, true, false);
    if (first < last) add(first, last, false, false);
    if (leaves) add(documents - 1, documents, false, true);
    return layout;
}

std::vector<int32_t> chunk_of(const std::vector<int32_t>& values, const ops::TokenLayout& layout) {
    if (!layout.chunks) return values;
    const int64_t row = layout.chunks->starts.back();
    std::vector<int32_t> own;
    own.reserve(static_cast<size_t>(layout.tokens()));
    for (int64_t b = 0; b < layout.batch; ++b) {
        const auto begin = values.begin() + b * row + layout.first_position;
        own.insert(own.end(), begin, begin + layout.length);
    }
    return own;
}

}  // namespace levin
