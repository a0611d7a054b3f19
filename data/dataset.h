// What is trained on: one or several token sources as streams that samples are cut from.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/token_source.h"

namespace levin {

// Token sources one after the other.
class TokenStream {
public:
    explicit TokenStream(std::vector<std::unique_ptr<TokenSource>> sources);

    int64_t num_tokens() const { return starts_.back(); }
    int64_t num_documents() const;
    // As TokenSource::read and append_document_starts, across the borders of the sources.
    void read(int64_t first, int64_t count, int64_t vocab_size, int32_t* out) const;
    void append_document_starts(int64_t first, int64_t count, std::vector<int64_t>& out) const;
    // Sequences of `length` inputs with a target each: sample i holds tokens [i * length, i * length +
    // length].
    int64_t num_samples(int64_t length) const { return num_tokens() > 0 ? (num_tokens() - 1) / length : 0; }

    const std::vector<std::unique_ptr<TokenSource>>& sources() const { return sources_; }
    std::string name() const;

private:
    size_t source_of(int64_t token) const;

    std::vector<std::unique_ptr<TokenSource>> sources_;
    std::vector<int64_t> starts_;  // first token of each source, and the end
};

// Opened from a list of strings, each "PREFIX" or "WEIGHT PREFIX" (such as "0.3 data/code"): without weights
// the shards are one stream, as if concatenated; with weights each is a stream of its own and samples are
// drawn from them in that proportion. Immutable, safe to share between threads.
class Dataset {
public:
    // Throws Error(input) for an empty list, a mixture of both ways, a weight that is not positive, a bad
    // shard, shards whose descriptions (PREFIX.json) tell of different tokenizers. `beside`: data the same
    // model is trained on, whose tokenizer must be the same too.
    explicit Dataset(const std::vector<std::string>& specs, const Dataset* beside = nullptr);

    const std::vector<TokenStream>& streams() const { return streams_; }
    const std::vector<double>& weights() const { return weights_; }  // one per stream; sum 1
    int64_t num_tokens() const;
    int64_t num_documents() const;
    // Throws Error(input) when a shard's own tokenizer has more tokens than the model's vocabulary. Shards
    // that do not say are checked token by token as they are read.
    void check_vocabulary(int64_t vocab_size) const;
    // 64-bit hash of what the data is (sizes, token types, input hashes where known), to tell a resumed run
    // from one on other data.
    uint64_t fingerprint() const;

private:
    // The first source with a description, or nullptr.
    const TokenSource* described() const;
    void check_tokenizers(const Dataset* beside) const;

    std::vector<TokenStream> streams_;
    std::vector<double> weights_;
};

}  // namespace levin
