#include "data/tokenizer_trainer.h"

#include <sentencepiece_trainer.h>

#include <algorithm>
#include <thread>
#include <unordered_map>

#include "kernels/base/error.h"

namespace levin {

namespace {

constexpr size_t kLongestSentence = 4000;  // bytes; the library leaves out sentences above its 4192

// The corpus line by line, long lines cut at spaces.
class CorpusSentences final : public sentencepiece::SentenceIterator {
public:
    explicit CorpusSentences(const CorpusOptions& options) : options_(options), reader_(options, nullptr) {
        advance();
    }

    bool done() const override { return done_; }
    void Next() override { advance(); }
    const std::string& value() const override { return sentence_; }
    // Our own errors are thrown; the library is built with exceptions and lets them through.
    sentencepiece::util::Status status() const override { return {}; }

private:
    void advance() {
        for (;;) {
            while (rest_.empty()) {
                if (piece_ == block_.pieces.size()) {
                    piece_ = 0;
                    if (!reader_.next(block_)) {
                        done_ = true;
                        return;
                    }
                }
                text_of(block_, block_.pieces[piece_++], options_, text_);
                rest_ = text_.text;
            }
            const size_t newline = std::min(rest_.find('\n'), rest_.size());
            size_t end = newline;
            if (end > kLongestSentence) {
                end = kLongestSentence;
                const size_t space = rest_.rfind(' ', end);
                if (space != std::string_view::npos && space > 0) {
                    end = space;
                } else {
                    while ((static_cast<uint8_t>(rest_[end]) & 0xC0) == 0x80) --end;
                }
            }
            sentence_.assign(rest_.substr(0, end));
            rest_.remove_prefix(std::min(end + (end == newline ? 1 : 0), rest_.size()));
            // The library keeps NUL and U+2581 for itself; a NUL would end its sentence.
            std::erase(sentence_, '\0');
            if (!sentence_.empty()) return;
        }
    }

    const CorpusOptions& options_;
    DocumentReader reader_;
    Block block_;
    size_t piece_ = 0;
    PieceText text_;
    std::string_view rest_;
    std::string sentence_;
    bool done_ = false;
};

}  // namespace

std::string train_sentencepiece(const TokenizerTrainOptions& options) {
    LEVIN_REQUIRE(options.model_type == "bpe" || options.model_type == "unigram", "tokenizer",
                  "type \"{}\" is not known, expected bpe or unigram", options.model_type);
    const int least = options.byte_fallback ? 300 : 16;
    LEVIN_REQUIRE(options.vocab_size >= least && options.vocab_size <= 1'000'000, "tokenizer",
                  "a vocabulary of {} pieces, expected {} to 1000000", options.vocab_size, least);
    CorpusSentences sentences(options.corpus);
    LEVIN_REQUIRE(!sentences.done(), "tokenizer", "the corpus is empty: {} input file(s) hold no text",
                  options.corpus.inputs.size());
    const int threads = options.threads > 0
                            ? options.threads
                            : std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, 128);
    std::unordered_map<std::string, std::string> arguments{
        {"vocab_size", std::to_string(options.vocab_size)},
        {"model_type", options.model_type},
        {"byte_fallback", options.byte_fallback ? "true" : "false"},
        {"character_coverage", "0.9995"},
        {"normalization_rule_name", "identity"},
        {"remove_extra_whitespaces", "false"},
        {"allow_whitespace_only_pieces", "true"},
        {"split_digits", "true"},
        {"input_sentence_size", std::to_string(options.max_sentences)},
        {"shuffle_input_sentence", "true"},
        {"num_threads", std::to_string(threads)},
        {"minloglevel", "2"},
    };
    // Lines are trained on one by one, so no piece holds a newline: it is the byte piece <0x0A>, or a piece
    // of its own.
    if (!options.byte_fallback) arguments.emplace("user_defined_symbols", "\n");
    std::string model;
    const auto status = sentencepiece::SentencePieceTrainer::Train(arguments, &sentences, &model);
    LEVIN_REQUIRE(status.ok(), "tokenizer", "SentencePiece cannot train on this corpus: {}",
                  status.ToString());
    return model;
}

}  // namespace levin
