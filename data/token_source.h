// A file of tokens divided into documents, whatever its format. Opened by open_token_source():
//   Megatron   PREFIX.bin + PREFIX.idx   levin's own shards, Megatron-LM, NeMo       data/megatron_shard.h
//   llm.c      NAME.bin with its header                                              data/llmc_shard.cpp
//   datatrove  NAME.ds + NAME.ds.index                                               data/datatrove_shard.cpp
// The files come from outside: every size, offset and type is checked when a source is opened, every token
// when it is read. All numbers in these files are little-endian.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/file.h"
#include "data/shard_info.h"

namespace levin {

enum class TokenType : uint8_t { u8, i8, i16, u16, i32, u32, i64 };

constexpr int64_t width_of(TokenType type) {
    switch (type) {
        case TokenType::u8:
        case TokenType::i8:
            return 1;
        case TokenType::i16:
        case TokenType::u16:
            return 2;
        case TokenType::i32:
        case TokenType::u32:
            return 4;
        case TokenType::i64:
            return 8;
    }
    return 0;
}
std::string to_string(TokenType type);

// Some tokens in memory, at any alignment. Lives as long as its TokenSource.
struct TokenSpan {
    const uint8_t* data = nullptr;
    int64_t count = 0;
    TokenType type = TokenType::u16;

    int64_t operator[](int64_t index) const;
};

// Tokens are numbered 0 .. num_tokens() in file order; document d is the tokens
// [document_begin(d), document_begin(d + 1)). Reading is safe from any number of threads.
class TokenSource {
public:
    // Where document d starts; document_begin(num_documents()) == num_tokens(). O(1), any d in 0 ..
    // num_documents().
    class DocumentTable {
    public:
        virtual ~DocumentTable() = default;
        virtual int64_t num_documents() const = 0;
        virtual int64_t begin(int64_t document) const = 0;
        // Byte of the token file at which the document's first token lies.
        virtual uint64_t byte_offset(int64_t document) const = 0;
        // True when byte_offset(d) == base + begin(d) * width for every d.
        virtual bool contiguous() const { return true; }
    };

    // `name` is what errors call the source. `documents` has been checked against the size of `file` by the
    // caller.
    TokenSource(std::string name, MappedFile file, TokenType type, std::unique_ptr<DocumentTable> documents);

    const std::string& name() const { return name_; }
    TokenType type() const { return type_; }
    int64_t num_tokens() const { return num_tokens_; }
    int64_t num_documents() const { return documents_->num_documents(); }
    int64_t document_begin(int64_t document) const { return documents_->begin(document); }
    // The document that holds token `token`. O(log documents). Empty documents hold no token.
    int64_t document_of(int64_t token) const;
    TokenSpan document(int64_t document) const;

    // Copies tokens [first, first + count) to out. A token that is negative or not below vocab_size throws
    // Error(input) naming file, document and position. vocab_size at most 2^31 - 1.
    void read(int64_t first, int64_t count, int64_t vocab_size, int32_t* out) const;
    // Appends first <= p < first + count where p is the first token of a document, as p - first.
    void append_document_starts(int64_t first, int64_t count, std::vector<int64_t>& out) const;

    // What the builder wrote beside the shard (PREFIX.json); empty for shards of other makers.
    const std::optional<ShardInfo>& info() const { return info_; }
    void set_info(ShardInfo info) { info_ = std::move(info); }

private:
    void read_run(const uint8_t* from, int64_t first, int64_t count, int64_t vocab_size, int32_t* out) const;

    std::string name_;
    MappedFile file_;
    TokenType type_;
    std::unique_ptr<DocumentTable> documents_;
    int64_t num_tokens_ = 0;
    std::optional<ShardInfo> info_;
};

// Documents one after the other without holes: the starts of all of them, with the end of the last one
// appended.
class ContiguousDocuments : public TokenSource::DocumentTable {
public:
    ContiguousDocuments(std::vector<int64_t> starts, uint64_t base, int64_t width)
        : starts_(std::move(starts)), base_(base), width_(width) {}
    int64_t num_documents() const override { return static_cast<int64_t>(starts_.size()) - 1; }
    int64_t begin(int64_t document) const override { return starts_[static_cast<size_t>(document)]; }
    uint64_t byte_offset(int64_t document) const override {
        return base_ + static_cast<uint64_t>(begin(document) * width_);
    }

private:
    std::vector<int64_t> starts_;
    uint64_t base_;
    int64_t width_;
};

// Opens PREFIX (with or without its extension) in the format its files have. Throws Error(input) that lists
// what was looked for when there is none, and what is wrong with it when there is one.
std::unique_ptr<TokenSource> open_token_source(const std::string& path);

// The three formats by themselves. `bin_path`, `ds_path` name the token file with its extension.
std::unique_ptr<TokenSource> open_llmc_shard(const std::string& bin_path);
std::unique_ptr<TokenSource> open_datatrove_shard(const std::string& ds_path);

// Reads every token: each must be in 0 .. vocab_size. Throws Error(input) at the first that is not.
void verify_tokens(const TokenSource& source, int64_t vocab_size);

}  // namespace levin
