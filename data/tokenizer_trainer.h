// Trains a SentencePiece model on text files.
#pragma once

#include <string>

#include "data/document_reader.h"

namespace levin {

struct TokenizerTrainOptions {
    CorpusOptions corpus;
    int vocab_size = 0;                 // pieces in all, control and byte pieces included
    std::string model_type = "bpe";     // "bpe" or "unigram"
    bool byte_fallback = true;          // 256 byte pieces, so that any text can be written
    int64_t max_sentences = 1'000'000;  // lines held in memory, drawn evenly from the corpus
    int threads = 0;                    // 0: one per core
};

// The content of a .model file. Text is taken as it is: no Unicode normalisation, spaces kept, so that
// decoding gives back the text. Pieces: <unk> 0, <s> 1, </s> 2. Throws Error(input) for bad options or a
// corpus that is too small.
std::string train_sentencepiece(const TokenizerTrainOptions& options);

}  // namespace levin
