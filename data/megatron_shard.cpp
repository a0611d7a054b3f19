#include "data/megatron_shard.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "kernels/base/error.h"

namespace levin {

namespace {

constexpr char kMagic[9] = {'M', 'M', 'I', 'D', 'I', 'D', 'X', '\0', '\0'};
constexpr char kLegacyMagic[6] = {'T', 'N', 'T', 'I', 'D', 'X'};
constexpr size_t kHeaderSize = 34;
constexpr int64_t kLongestSequence = INT32_MAX;

TokenType type_from_code(const std::string& path, uint8_t code) {
    switch (code) {
        case 1:
            return TokenType::u8;
        case 2:
            return TokenType::i8;
        case 3:
            return TokenType::i16;
        case 4:
            return TokenType::i32;
        case 5:
            return TokenType::i64;
        case 8:
            return TokenType::u16;
        case 6:
        case 7:
            fail(Fault::input, path,
                 "token type code {} means different types to different writers (float or unsigned); "
                 "tokenize the "
                 "corpus again with type u16, i32 or i64",
                 code);
    }
    fail(Fault::input, path, "token type code is {}, expected 1 u8, 2 i8, 3 i16, 4 i32, 5 i64 or 8 u16",
         code);
}

uint8_t code_of(TokenType type) {
    switch (type) {
        case TokenType::u8:
            return 1;
        case TokenType::i8:
            return 2;
        case TokenType::i16:
            return 3;
        case TokenType::i32:
            return 4;
        case TokenType::i64:
            return 5;
        case TokenType::u16:
            return 8;
        case TokenType::u32:
            break;
    }
    fail(Fault::internal, "megatron shard", "the format has no code for {} tokens", to_string(type));
}

// Writes tokens as type T; false when one does not fit.
template <class T>
bool pack(std::span<const int32_t> tokens, uint8_t* to) {
    bool fits = true;
    for (size_t i = 0; i < tokens.size(); ++i) {
        const T narrow = static_cast<T>(tokens[i]);
        fits = fits && static_cast<int64_t>(narrow) == tokens[i];
        std::memcpy(to + i * sizeof(T), &narrow, sizeof(T));
    }
    return fits;
}

// The arrays of the .idx file where they lie, at no particular alignment.
struct IndexArrays {
    const uint8_t* lengths = nullptr;
    const uint8_t* offsets = nullptr;
    const uint8_t* documents = nullptr;
    int64_t num_sequences = 0, num_entries = 0;

    int64_t length(int64_t s) const { return load_unaligned<int32_t>(lengths + 4 * s); }
    int64_t offset(int64_t s) const { return load_unaligned<int64_t>(offsets + 8 * s); }
    int64_t first_sequence(int64_t d) const { return load_unaligned<int64_t>(documents + 8 * d); }
};

// Without holes between documents the mapped index answers everything; else the starts are summed up once.
class MegatronDocuments : public TokenSource::DocumentTable {
public:
    MegatronDocuments(MappedFile index, IndexArrays arrays, int64_t width, int64_t num_tokens,
                      std::vector<int64_t> starts)
        : index_(std::move(index)),
          arrays_(arrays),
          width_(width),
          num_tokens_(num_tokens),
          starts_(std::move(starts)) {}

    int64_t num_documents() const override { return arrays_.num_entries - 1; }
    int64_t begin(int64_t document) const override {
        if (!starts_.empty()) return starts_[static_cast<size_t>(document)];
        const int64_t s = arrays_.first_sequence(document);
        return s == arrays_.num_sequences ? num_tokens_ : arrays_.offset(s) / width_;
    }
    uint64_t byte_offset(int64_t document) const override {
        const int64_t s = arrays_.first_sequence(document);
        return s == arrays_.num_sequences ? 0 : static_cast<uint64_t>(arrays_.offset(s));
    }
    bool contiguous() const override { return starts_.empty(); }

private:
    MappedFile index_;
    IndexArrays arrays_;
    int64_t width_, num_tokens_;
    std::vector<int64_t> starts_;
};

IndexArrays check_header(const MappedFile& index, TokenType& type) {
    const std::string& path = index.path();
    const uint8_t* data = index.bytes().data();
    LEVIN_REQUIRE(
        index.size() < sizeof(kLegacyMagic) || std::memcmp(data, kLegacyMagic, sizeof(kLegacyMagic)) != 0,
        path,
        "is an index of the legacy fairseq format (TNTIDX), which is not read; convert it with "
        "Megatron-LM's preprocessing tool in its mmap format, or build from text with `levin data build`");
    LEVIN_REQUIRE(index.size() >= kHeaderSize, path,
                  "holds {} bytes, the header alone has {}; the file is truncated", index.size(),
                  kHeaderSize);
    LEVIN_REQUIRE(std::memcmp(data, kMagic, sizeof(kMagic)) == 0, path,
                  "does not begin with MMIDIDX: not the index of a Megatron shard");
    const uint64_t version = load_unaligned<uint64_t>(data + 9);
    LEVIN_REQUIRE(version == 1, path, "has version {}, only version 1 is known", version);
    type = type_from_code(path, data[17]);
    const uint64_t sequences = load_unaligned<uint64_t>(data + 18);
    const uint64_t entries = load_unaligned<uint64_t>(data + 26);
    // Bounding both counts by the file size first keeps the sum below from overflowing.
    const uint64_t room = index.size() - kHeaderSize;
    LEVIN_REQUIRE(
        sequences <= room / 12 && entries <= room / 8 && 12 * sequences + 8 * entries == room, path,
        "claims {} sequences and {} document entries, which does not fit its size of {} bytes; the file is "
        "truncated or damaged",
        sequences, entries, index.size());
    LEVIN_REQUIRE(entries >= 1, path, "has no document entries, at least one (the end) is expected");
    IndexArrays arrays;
    arrays.num_sequences = static_cast<int64_t>(sequences);
    arrays.num_entries = static_cast<int64_t>(entries);
    arrays.lengths = data + kHeaderSize;
    arrays.offsets = arrays.lengths + 4 * sequences;
    arrays.documents = arrays.offsets + 8 * sequences;
    return arrays;
}

// Checks every sequence against the token file. Returns the number of tokens; `holes` tells whether bytes of
// the token file lie between sequences (or before the first).
int64_t check_sequences(const std::string& path, const IndexArrays& arrays, int64_t width, int64_t bin_size,
                        bool& holes) {
    int64_t tokens = 0, end = 0;
    for (int64_t s = 0; s < arrays.num_sequences; ++s) {
        const int64_t length = arrays.length(s), offset = arrays.offset(s);
        LEVIN_REQUIRE(length >= 0, path, "sequence {} has length {}; the index is damaged", s, length);
        LEVIN_REQUIRE(
            offset >= end, path,
            "sequence {} starts at byte {}, before the end of the one before it at byte {}; the index is "
            "damaged",
            s, offset, end);
        LEVIN_REQUIRE(offset % width == 0, path,
                      "sequence {} starts at byte {}, which is no multiple of {} bytes", s, offset, width);
        LEVIN_REQUIRE(
            offset <= bin_size && length <= (bin_size - offset) / width, path,
            "sequence {} ends at byte {} + {} * {}, but the .bin file has {} bytes; the .bin file is "
            "truncated, or belongs to another index",
            s, offset, length, width, bin_size);
        holes = holes || offset != end;
        end = offset + length * width;
        tokens += length;
    }
    return tokens;
}

// Checks the document entries; where the token file has holes, returns the first token of every document and
// the end.
std::vector<int64_t> check_documents(const std::string& path, const IndexArrays& arrays, int64_t width,
                                     bool holes) {
    std::vector<int64_t> starts;
    if (holes) starts.reserve(static_cast<size_t>(arrays.num_entries));
    int64_t before = 0, tokens = 0;
    LEVIN_REQUIRE(arrays.first_sequence(0) == 0, path, "the first document starts at sequence {}, expected 0",
                  arrays.first_sequence(0));
    for (int64_t d = 0; d < arrays.num_entries; ++d) {
        const int64_t sequence = arrays.first_sequence(d);
        LEVIN_REQUIRE(sequence >= before && sequence <= arrays.num_sequences, path,
                      "document {} starts at sequence {}, expected {} to {}; the index is damaged", d,
                      sequence, before, arrays.num_sequences);
        if (holes) {
            for (int64_t s = before; s < sequence; ++s) {
                LEVIN_REQUIRE(
                    s == before || arrays.offset(s) == arrays.offset(s - 1) + arrays.length(s - 1) * width,
                    path, "document {} has unused bytes inside it, before sequence {}; the index is damaged",
                    d - 1, s);
                tokens += arrays.length(s);
            }
            starts.push_back(tokens);
        }
        before = sequence;
    }
    LEVIN_REQUIRE(before == arrays.num_sequences, path,
                  "the documents end at sequence {} of {}; the index is damaged", before,
                  arrays.num_sequences);
    return starts;
}

}  // namespace

std::unique_ptr<TokenSource> open_megatron_shard(const std::string& prefix) {
    MappedFile index(prefix + ".idx"), bin(prefix + ".bin");
    const std::string path = index.path();
    TokenType type{};
    const IndexArrays arrays = check_header(index, type);
    bool holes = false;
    const int64_t width = width_of(type), bin_size = static_cast<int64_t>(bin.size());
    const int64_t tokens = check_sequences(path, arrays, width, bin_size, holes);
    std::vector<int64_t> starts = check_documents(path, arrays, width, holes);
    auto documents =
        std::make_unique<MegatronDocuments>(std::move(index), arrays, width, tokens, std::move(starts));
    std::string name = bin.path();
    auto source = std::make_unique<TokenSource>(std::move(name), std::move(bin), type, std::move(documents));
    if (auto info = read_shard_info(prefix)) {
        LEVIN_REQUIRE(
            info->num_tokens == tokens && info->num_documents == source->num_documents() &&
                bin_size == tokens * width,
            prefix + ".json",
            "describes {} tokens in {} documents, the shard holds {} in {} ({} bytes); the files do not "
            "belong together, build the shard again",
            info->num_tokens, info->num_documents, tokens, source->num_documents(), bin_size);
        source->set_info(std::move(*info));
    }
    return source;
}

MegatronShardWriter::MegatronShardWriter(const std::string& prefix, TokenType type)
    : prefix_(prefix), type_(type), bin_(prefix + ".bin"), idx_(prefix + ".idx") {
    code_of(type);
}

void MegatronShardWriter::append(std::span<const int32_t> tokens) {
    packed_.resize(tokens.size() * static_cast<size_t>(width_of(type_)));
    bool fits = false;
    switch (type_) {
        case TokenType::u8:
            fits = pack<uint8_t>(tokens, packed_.data());
            break;
        case TokenType::i8:
            fits = pack<int8_t>(tokens, packed_.data());
            break;
        case TokenType::i16:
            fits = pack<int16_t>(tokens, packed_.data());
            break;
        case TokenType::u16:
            fits = pack<uint16_t>(tokens, packed_.data());
            break;
        case TokenType::i32:
            fits = pack<int32_t>(tokens, packed_.data());
            break;
        case TokenType::i64:
            fits = pack<int64_t>(tokens, packed_.data());
            break;
        case TokenType::u32:
            break;
    }
    LEVIN_CHECK(fits, prefix_, "a token of document {} does not fit type {}", num_documents(),
                to_string(type_));
    bin_.write(packed_.data(), packed_.size());
    open_tokens_ += static_cast<int64_t>(tokens.size());
}

void MegatronShardWriter::end_document() {
    lengths_.push_back(open_tokens_);
    num_tokens_ += open_tokens_;
    open_tokens_ = 0;
}

void MegatronShardWriter::discard_document() {
    if (open_tokens_ == 0) return;
    bin_.truncate(static_cast<uint64_t>(num_tokens_ * width_of(type_)));
    open_tokens_ = 0;
}

std::string MegatronShardWriter::flushed_token_file() {
    bin_.flush();
    return bin_.temporary_path();
}

void MegatronShardWriter::sync() {
    LEVIN_CHECK(open_tokens_ == 0, prefix_, "the last document was not ended");
    if (!index_written_) {
        // A document longer than an i32 length can say becomes several sequences.
        std::vector<int32_t> lengths;
        std::vector<int64_t> offsets, documents{0};
        int64_t offset = 0;
        for (const int64_t length : lengths_) {
            int64_t left = length;
            do {
                const int64_t n = std::min(left, kLongestSequence);
                lengths.push_back(static_cast<int32_t>(n));
                offsets.push_back(offset);
                offset += n * width_of(type_);
                left -= n;
            } while (left > 0);
            documents.push_back(static_cast<int64_t>(lengths.size()));
        }
        const uint64_t version = 1, sequences = lengths.size(), entries = documents.size();
        const uint8_t code = code_of(type_);
        idx_.write(kMagic, sizeof(kMagic));
        idx_.write(&version, 8);
        idx_.write(&code, 1);
        idx_.write(&sequences, 8);
        idx_.write(&entries, 8);
        idx_.write(lengths.data(), 4 * lengths.size());
        idx_.write(offsets.data(), 8 * offsets.size());
        idx_.write(documents.data(), 8 * documents.size());
        index_written_ = true;
    }
    bin_.sync();
    idx_.sync();
}

void MegatronShardWriter::commit_tokens() {
    ::unlink((prefix_ + ".idx").c_str());
    bin_.commit();
}

void MegatronShardWriter::commit_index() { idx_.commit(); }

}  // namespace levin
