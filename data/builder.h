// Text files to a token shard: PREFIX.bin, PREFIX.idx (data/megatron_shard.h), PREFIX.json
// (data/shard_info.h) and a copy of the tokenizer.
//
// One thread reads and cuts, `threads` threads clean and tokenize, the calling thread writes: memory is
// bounded by a few blocks per thread (plus 8 bytes per document), and the shard is the same to the byte for
// any number of threads. A document longer than CorpusOptions::piece_bytes is encoded in pieces, cut where
// the tokenizer says that it does not matter (Tokenizer::find_cut), else at a line's end or between two
// characters. Empty documents are left out. Everything is written under temporary names, made durable, then
// renamed, the index last: after a crash there is the old shard, the new one, or none, never a mixture.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "data/document_reader.h"

namespace levin {

struct BuildProgress {
    uint64_t bytes_read = 0, total_bytes = 0;  // of the input files as they lie on the disk
    uint64_t text_bytes = 0;                   // of text tokenized
    int64_t tokens = 0, documents = 0;
};

struct BuildOptions {
    CorpusOptions corpus;
    std::string tokenizer = "byte";  // as load_tokenizer() takes it
    std::string output;              // PREFIX; its folder is created
    int threads = 0;                 // 0: one per core
    bool append_eos = true;          // the tokenizer's eos token ends every document
    bool overwrite = false;
    // Of the tokens, set aside in PREFIX-validation.*: whole documents chosen by their number, or the end of
    // the corpus where documents are too few or too long for that. 0: none.
    double validation_fraction = 0;
    SpecialTokens special_tokens = SpecialTokens::text;
    std::function<void(const BuildProgress&)> progress;  // called now and then on the calling thread
};

struct BuildResult {
    uint64_t text_bytes = 0;
    int64_t tokens = 0, documents = 0;  // in PREFIX
    int64_t validation_tokens = 0, validation_documents = 0;
    int64_t empty_documents = 0;    // left out
    int64_t replaced_utf8 = 0;      // invalid sequences that became U+FFFD
    int64_t skipped_documents = 0;  // InvalidUtf8::skip
    int64_t skipped_lines = 0;      // BadLines::skip
    double seconds = 0;
};

// Throws Error(input): bad options, an output that exists, input files that cannot be used, an empty corpus.
BuildResult build_shard(const BuildOptions& options);

}  // namespace levin
