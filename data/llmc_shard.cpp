// Token files of karpathy/llm.c: 256 x i32 header [magic, version, tokens], then the tokens.
//   20240520 / 1  u16, GPT-2        20240801 / 7  u32, Llama 3
// The file has no table of documents: each document begins with the tokenizer's end-of-text token.
#include "data/token_source.h"
#include "kernels/base/error.h"

namespace levin {

namespace {

constexpr int64_t kHeaderBytes = 256 * 4;
struct Variant {
    int32_t magic, version;
    TokenType type;
    int64_t first_of_document;  // <|endoftext|> of GPT-2, <|begin_of_text|> of Llama 3
};
constexpr Variant kVariants[] = {{20240520, 1, TokenType::u16, 50256}, {20240801, 7, TokenType::u32, 128000}};

}  // namespace

std::unique_ptr<TokenSource> open_llmc_shard(const std::string& bin_path) {
    MappedFile file(bin_path);
    const int64_t size = static_cast<int64_t>(file.size());
    LEVIN_REQUIRE(
        size >= kHeaderBytes, bin_path,
        "holds {} bytes, the header of an llm.c shard alone has {}; a Megatron shard needs its .idx file "
        "beside it",
        size, kHeaderBytes);
    const uint8_t* data = file.bytes().data();
    const auto header = [&](int i) { return load_unaligned<int32_t>(data + 4 * i); };
    const Variant* variant = nullptr;
    for (const Variant& v : kVariants) {
        if (header(0) == v.magic && header(1) == v.version) variant = &v;
    }
    LEVIN_REQUIRE(
        variant != nullptr, bin_path,
        "has magic {} version {}, expected 20240520 version 1 or 20240801 version 7 (llm.c); a Megatron "
        "shard needs its .idx file beside it",
        header(0), header(1));
    const int64_t count = header(2), width = width_of(variant->type);
    LEVIN_REQUIRE(
        count >= 0 && size == kHeaderBytes + count * width, bin_path,
        "claims {} tokens of {} bytes after a header of {}, but holds {} bytes; truncated or damaged", count,
        width, kHeaderBytes, size);
    const TokenSpan tokens{data + kHeaderBytes, count, variant->type};
    std::vector<int64_t> starts{0};
    for (int64_t i = 1; i < count; ++i) {
        if (tokens[i] == variant->first_of_document) starts.push_back(i);
    }
    if (count > 0) starts.push_back(count);
    auto documents = std::make_unique<ContiguousDocuments>(std::move(starts), kHeaderBytes, width);
    return std::make_unique<TokenSource>(bin_path, std::move(file), variant->type, std::move(documents));
}

}  // namespace levin
