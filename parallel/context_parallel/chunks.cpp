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
    const int64_t end = starts[static_cast<size_t>(from + 1)];
    return document_starts[static_cast<size_t>(to)] < end ? starts[static_cast<size_t>(to)] - end : -1;
}

namespace {

Tensor tensor(const std::vector<int32_t>& values, const Device& device) {
    return upload({static_cast<int64_t>(values.size())}, values, device);
}

// What is to be cut. Packed documents are one row, in which `borders` are places.
struct Rows {
    int64_t count, length;
    const std::vector<int32_t>& borders;
    int rank, ranks;
    const Device& device;

    bool packed() const { return !borders.empty(); }
    // The document of a token: the last border at or before it.
    int64_t document_start(int64_t token) const {
        if (!packed()) return 0;
        return *(std::upper_bound(borders.begin(), borders.end(), token) - 1);
    }
    // This rank's chunk of tokens begin .. end of `number` rows.
    ops::TokenLayout chunk(int64_t first_row, int64_t number, int64_t begin, int64_t end) const;
    void add_documents(ops::TokenLayout& layout, SequenceChunks& chunks, bool enters, bool leaves) const;
};

ops::TokenLayout Rows::chunk(int64_t first_row, int64_t number, int64_t begin, int64_t end) const {
    auto chunks = std::make_shared<SequenceChunks>();
    chunks->rank = rank;
    chunks->first_row = first_row;
    chunks->row_length = length;
    for (int64_t r = 0; r <= ranks; ++r) {
        chunks->starts.push_back(begin + (end - begin) * r / ranks);
        chunks->document_starts.push_back(
            chunks->starts.back() < length ? document_start(chunks->starts.back()) : length);
    }
    const auto own = static_cast<size_t>(rank);
    const int64_t first = chunks->starts[own], last = chunks->starts[own + 1];
    const bool enters = chunks->document_starts[own] < first,
               leaves = chunks->document_starts[own + 1] < last;
    ops::TokenLayout layout{
        .batch = number, .length = last - first, .first_position = first, .chunks = chunks};
    if (packed())
        add_documents(layout, *chunks, enters, leaves);
    else
        chunks->segments = {{.begin = 0, .length = last - first, .enters = enters, .leaves = leaves}};
    return layout;
}

void Rows::add_documents(ops::TokenLayout& layout, SequenceChunks& chunks, bool enters, bool leaves) const {
    const int64_t begin = layout.first_position, end = begin + layout.length;
    std::vector<int32_t> own{0};
    for (const int32_t border : borders)
        if (border > begin && border < end) own.push_back(static_cast<int32_t>(border - begin));
    own.push_back(static_cast<int32_t>(end - begin));
    layout.cu_seqlens = tensor(own, device);
    const int64_t before = begin - document_start(begin);
    std::vector<int32_t> keys{0};
    for (size_t i = 1; i < own.size(); ++i) keys.push_back(static_cast<int32_t>(own[i] + before));
    chunks.key_cu_seqlens = tensor(keys, device);

    // At most three segments: the end of a document that began earlier, whole documents, and the beginning of
    // one that goes on; or one document that is cut at both ends.
    const size_t documents = own.size() - 1;
    const auto add = [&](size_t first, size_t last, bool in, bool out) {
        SequenceChunks::Segment segment{
            .begin = own[first], .length = own[last] - own[first], .enters = in, .leaves = out};
        if (last - first > 1) {
            std::vector<int32_t> inner;
            for (size_t i = first; i <= last; ++i) inner.push_back(own[i] - own[first]);
            segment.cu_seqlens = tensor(inner, device);
        }
        chunks.segments.push_back(segment);
    };
    if (documents == 1) return add(0, 1, enters, leaves);
    const size_t first = enters ? 1 : 0, last = leaves ? documents - 1 : documents;
    if (enters) add(0, 1, true, false);
    if (first < last) add(first, last, false, false);
    if (leaves) add(documents - 1, documents, false, true);
}

}  // namespace

std::vector<int64_t> cut_evenly(int64_t length, int64_t most, int64_t unit, int64_t least) {
    const int64_t count = (length + most - 1) / most, even = (length + count - 1) / count;
    const int64_t piece = std::min(most, (even + unit - 1) / unit * unit);
    std::vector<int64_t> borders{0};
    while (length - borders.back() >= piece + least) borders.push_back(borders.back() + piece);
    borders.push_back(length);
    return borders;
}

ops::TokenLayout chunk_layout(int64_t batch, int64_t length, const std::vector<int32_t>& borders, int rank,
                              int ranks, const Device& device, int64_t slice) {
    const bool packed = !borders.empty();
    const int64_t whole = batch * length, share = (length + ranks - 1) / ranks;
    if (ranks == 1 && !packed) return {.batch = batch, .length = length};
    if (ranks == 1)
        return {.batch = 1,
                .length = whole,
                .cu_seqlens = tensor(borders, device),
                .borders = std::make_shared<const std::vector<int32_t>>(borders)};
    const bool cut = slice > 0 && batch * share > slice;
    const int64_t row = packed && !cut ? whole : length;
    LEVIN_REQUIRE(
        row >= ranks, "parallel",
        "sequences of {} tokens on parallel.cp={} ranks: each needs a token at least; set parallel.cp "
        "to {} or less, or use longer sequences",
        row, ranks, row);
    const Rows rows{packed ? 1 : batch, packed ? whole : length, borders, rank, ranks, device};
    if (!cut) return rows.chunk(0, rows.count, 0, rows.length);

    auto slices = std::make_shared<std::vector<ops::TokenLayout>>();
    ops::TokenLayout layout{.batch = 1, .length = 0, .slices = slices};
    const auto add = [&](int64_t first_row, int64_t count, int64_t begin, int64_t end) {
        const int64_t offset = first_row * length;
        slices->push_back(packed ? rows.chunk(0, 1, offset + begin, offset + (count - 1) * length + end)
                                 : rows.chunk(first_row, count, begin, end));
        layout.length += slices->back().tokens();
    };
    const int64_t together = slice / share;  // whole rows; 0: a row is cut
    for (int64_t first = 0; first < batch; first += std::max<int64_t>(1, together)) {
        if (together > 0) {
            add(first, std::min(together, batch - first), 0, length);
            continue;
        }
        const std::vector<int64_t> pieces = cut_evenly(length, slice * ranks, int64_t{128} * ranks, ranks);
        for (size_t i = 0; i + 1 < pieces.size(); ++i) add(first, 1, pieces[i], pieces[i + 1]);
    }
    return layout;
}

std::vector<int32_t> chunk_of(const std::vector<int32_t>& values, const ops::TokenLayout& layout) {
    if (!layout.chunks && !layout.slices) return values;
    std::vector<int32_t> own;
    own.reserve(static_cast<size_t>(layout.tokens()));
    for (const ops::TokenLayout& part : layout.slices ? *layout.slices : std::vector{layout})
        for (int64_t b = 0; b < part.batch; ++b) {
            const auto begin =
                values.begin() + (part.chunks->first_row + b) * part.chunks->row_length + part.first_position;
            own.insert(own.end(), begin, begin + part.length);
        }
    return own;
}

}  // namespace levin
