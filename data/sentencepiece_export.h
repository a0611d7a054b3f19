// The Hugging Face form of a SentencePiece unigram model. (transformers reads BPE models from the .model file
// itself.)
#pragma once

#include <sentencepiece_processor.h>

#include <string>
#include <string_view>

namespace levin {

// What the library does not tell about a model: the fields of trainer_spec and normalizer_spec that decide
// whether a tokenizer.json can say the same. Format: sentencepiece_model.proto.
struct SentencePieceTraits {
    bool unigram = true;              // trainer_spec.model_type is UNIGRAM, its default
    bool identity_normalizer = true;  // no character map, no removal of spaces
    bool dummy_prefix = true;
    bool byte_fallback = false;
    bool user_defined = false;  // has pieces of type USER_DEFINED
};
// `model` has been read by the library before.
SentencePieceTraits sentencepiece_traits(std::string_view model);

// tokenizer.json with the same ids, or "" where none is sure to give them: a normalizer of its own, no space
// put before the text, no byte fallback, user-defined pieces (which Hugging Face tokenizers treat otherwise).
std::string sentencepiece_tokenizer_json(const sentencepiece::SentencePieceProcessor& processor,
                                         std::string_view model);

}  // namespace levin
