// Token shards in the format of Megatron-LM's indexed dataset, version 1 (also levin's own):
//   PREFIX.bin  the tokens, raw and little-endian
//   PREFIX.idx  "MMIDIDX\0\0", u64 version = 1, u8 dtype (1 u8, 2 i8, 3 i16, 4 i32, 5 i64, 8 u16), u64 S
//   sequences,
//               u64 D document entries, i32[S] sequence lengths in tokens, i64[S] byte offsets of the
//               sequences in .bin, i64[D] first sequence of each document, the last entry being S
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "data/file.h"
#include "data/token_source.h"
#include "kernels/base/file.h"

namespace levin {

// Opens PREFIX.bin and PREFIX.idx, and PREFIX.json where it exists. Throws Error(input) for a file that is
// missing, truncated or lying: sizes, offsets (ascending, inside .bin, no overlap, no hole inside a
// document), document starts, and for a shard with PREFIX.json the counts written there.
std::unique_ptr<TokenSource> open_megatron_shard(const std::string& prefix);

// Writes PREFIX.bin and PREFIX.idx document by document. Nothing has its final name before commit().
class MegatronShardWriter {
public:
    // `type` must be u8, i8, i16, u16, i32 or i64.
    MegatronShardWriter(const std::string& prefix, TokenType type);

    // The tokens of a document come in any number of calls; end_document() closes it. Tokens must fit the
    // type.
    void append(std::span<const int32_t> tokens);
    void end_document();
    // Forgets the tokens appended since the last end_document().
    void discard_document();

    int64_t num_tokens() const { return num_tokens_ + open_tokens_; }
    int64_t num_documents() const { return static_cast<int64_t>(lengths_.size()); }
    const std::vector<int64_t>& document_lengths() const { return lengths_; }
    // The token file as it lies now under its temporary name, all tokens so far in it.
    std::string flushed_token_file();

    // Makes both files durable under their temporary names.
    void sync();
    // Gives the files their names, the index last: a shard without an index is no shard. An index of an older
    // shard of that name goes first, so that old and new are never mixed.
    void commit_tokens();
    void commit_index();
    void commit() {
        sync();
        commit_tokens();
        commit_index();
    }

private:
    std::string prefix_;
    TokenType type_;
    AtomicFile bin_, idx_;
    std::vector<int64_t> lengths_;  // tokens of each closed document
    int64_t num_tokens_ = 0, open_tokens_ = 0;
    std::vector<uint8_t> packed_;
    bool index_written_ = false;
};

}  // namespace levin
