#include "data/token_source.h"

#include <algorithm>
#include <type_traits>

#include "data/megatron_shard.h"
#include "kernels/base/error.h"

namespace levin {

namespace {

// Calls body with a value of the C++ type that `type` names.
template <class Body>
decltype(auto) with_type(TokenType type, Body&& body) {
    switch (type) {
        case TokenType::u8:
            return body(uint8_t{});
        case TokenType::i8:
            return body(int8_t{});
        case TokenType::i16:
            return body(int16_t{});
        case TokenType::u16:
            return body(uint16_t{});
        case TokenType::i32:
            return body(int32_t{});
        case TokenType::u32:
            return body(uint32_t{});
        case TokenType::i64:
            break;
    }
    return body(int64_t{});
}

bool ends_with(const std::string& text, const std::string& end) {
    return text.size() > end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

}  // namespace

std::string to_string(TokenType type) {
    switch (type) {
        case TokenType::u8:
            return "u8";
        case TokenType::i8:
            return "i8";
        case TokenType::i16:
            return "i16";
        case TokenType::u16:
            return "u16";
        case TokenType::i32:
            return "i32";
        case TokenType::u32:
            return "u32";
        case TokenType::i64:
            return "i64";
    }
    return "unknown";
}

int64_t TokenSpan::operator[](int64_t index) const {
    return with_type(type, [&](auto zero) {
        return static_cast<int64_t>(load_unaligned<decltype(zero)>(data + index * width_of(type)));
    });
}

TokenSource::TokenSource(std::string name, MappedFile file, TokenType type,
                         std::unique_ptr<DocumentTable> documents)
    : name_(std::move(name)),
      file_(std::move(file)),
      type_(type),
      documents_(std::move(documents)),
      num_tokens_(documents_->begin(documents_->num_documents())) {}

int64_t TokenSource::document_of(int64_t token) const {
    LEVIN_CHECK(token >= 0 && token < num_tokens_, name_, "token {} of {} asked for", token, num_tokens_);
    int64_t low = 0, high = num_documents();  // begin(low) <= token < begin(high)
    while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2;
        (document_begin(middle) <= token ? low : high) = middle;
    }
    return low;
}

TokenSpan TokenSource::document(int64_t document) const {
    LEVIN_CHECK(document >= 0 && document < num_documents(), name_, "document {} of {} asked for", document,
                num_documents());
    const int64_t begin = document_begin(document);
    return {file_.bytes().data() + documents_->byte_offset(document), document_begin(document + 1) - begin,
            type_};
}

void TokenSource::read_run(const uint8_t* from, int64_t first, int64_t count, int64_t vocab_size,
                           int32_t* out) const {
    const bool good = with_type(type_, [&](auto zero) {
        using T = decltype(zero);
        using Wide =
            std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;  // a negative token becomes a huge one
        Wide largest = 0;
        for (int64_t i = 0; i < count; ++i) {
            const T token = load_unaligned<T>(from + i * static_cast<int64_t>(sizeof(T)));
            largest = std::max(largest, static_cast<Wide>(token));
            out[i] = static_cast<int32_t>(token);
        }
        return largest < static_cast<Wide>(vocab_size);
    });
    if (good) return;
    const TokenSpan run{from, count, type_};
    for (int64_t i = 0; i < count; ++i) {
        if (run[i] >= 0 && run[i] < vocab_size) continue;
        const int64_t document = document_of(first + i);
        fail(Fault::input, name_,
             "token {} at position {} of document {} (token {} of the file) is outside the vocabulary of {} "
             "tokens; "
             "is the shard damaged, or made with another tokenizer?",
             run[i], first + i - document_begin(document), document, first + i, vocab_size);
    }
}

void TokenSource::read(int64_t first, int64_t count, int64_t vocab_size, int32_t* out) const {
    if (count == 0) return;
    LEVIN_CHECK(first >= 0 && count >= 0 && first <= num_tokens_ - count, name_,
                "tokens {} to {} asked for, the source has {}", first, first + count, num_tokens_);
    LEVIN_CHECK(vocab_size >= 0 && vocab_size <= INT32_MAX, name_, "vocabulary of {} tokens", vocab_size);
    const uint8_t* data = file_.bytes().data();
    const int64_t width = width_of(type_);
    if (documents_->contiguous()) {
        read_run(data + documents_->byte_offset(0) + (first * width), first, count, vocab_size, out);
        return;
    }
    for (int64_t d = document_of(first); count > 0; ++d) {
        const int64_t skip = first - document_begin(d);
        const int64_t n = std::min(count, document_begin(d + 1) - first);
        read_run(data + documents_->byte_offset(d) + skip * width, first, n, vocab_size, out);
        first += n, count -= n, out += n;
    }
}

void TokenSource::append_document_starts(int64_t first, int64_t count, std::vector<int64_t>& out) const {
    if (count <= 0) return;
    int64_t document = document_of(first);
    if (document_begin(document) < first) ++document;
    for (; document < num_documents() && document_begin(document) < first + count; ++document) {
        const int64_t begin = document_begin(document);
        if (document_begin(document + 1) > begin)
            out.push_back(begin - first);  // an empty document starts nothing
    }
}

std::unique_ptr<TokenSource> open_token_source(const std::string& path) {
    if (file_exists(path + ".idx")) return open_megatron_shard(path);
    for (const char* extension : {".bin", ".idx"}) {
        if (!ends_with(path, extension)) continue;
        const std::string prefix = path.substr(0, path.size() - 4);
        if (file_exists(prefix + ".idx")) return open_megatron_shard(prefix);
    }
    if (ends_with(path, ".bin") && file_exists(path)) return open_llmc_shard(path);
    if (ends_with(path, ".ds") && file_exists(path)) return open_datatrove_shard(path);
    if (file_exists(path + ".ds")) return open_datatrove_shard(path + ".ds");
    LEVIN_REQUIRE(
        !file_exists(path + ".bin"), path,
        "{}.bin is there but {}.idx is missing; give the path with .bin if it is a shard of llm.c, else "
        "build the shard again with `levin data build`",
        path, path);
    fail(Fault::input, path,
         "no token shard here: looked for {}.idx with {}.bin (Megatron), {} ending in .bin (llm.c), {}.ds "
         "(datatrove); "
         "build one with `levin data build --input FILE --tokenizer byte --output {}`",
         path, path, path, path, path);
}

void verify_tokens(const TokenSource& source, int64_t vocab_size) {
    constexpr int64_t kBlock = 1 << 16;
    std::vector<int32_t> block(kBlock);
    for (int64_t first = 0; first < source.num_tokens(); first += kBlock) {
        source.read(first, std::min(kBlock, source.num_tokens() - first), vocab_size, block.data());
    }
}

}  // namespace levin
