#include "data/dataset.h"

#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>

#include "data/file.h"
#include "kernels/base/error.h"
#include "kernels/base/file.h"

namespace levin {

namespace {

constexpr size_t kMostStreams = 250;  // what Mixture can hold

struct Spec {
    double weight = 0;  // 0: none given
    std::string path;
};

Spec parse(const std::string& text) {
    const size_t space = text.find(' ');
    if (space == std::string::npos || space == 0) return {0, text};
    const std::string head = text.substr(0, space);
    char* end = nullptr;
    const double weight = std::strtod(head.c_str(), &end);
    if (end != head.c_str() + head.size()) return {0, text};  // a path that contains a space
    LEVIN_REQUIRE(std::isfinite(weight) && weight > 0, "data",
                  "the weight in \"{}\" is {}, expected a positive number", text, weight);
    return {weight, text.substr(text.find_first_not_of(' ', space))};
}

// Which tokenizer made a shard that has a description: "sentencepiece, 8000 tokens, XXH3 1f..", the hash
// being that of the copy beside the shard, where there is one.
std::string tokenizer_of(const TokenSource& source) {
    const ShardInfo& info = *source.info();
    std::string text = fmt::format("{}, {} tokens", info.tokenizer_kind, info.vocab_size);
    const std::string file =
        (std::filesystem::path(source.name()).parent_path() / info.tokenizer_file).string();
    if (info.tokenizer_file.empty() || !file_exists(file)) return text;
    const std::string bytes = read_text_file(file);
    return text + fmt::format(", XXH3 {:016x}", XXH3_64bits(bytes.data(), bytes.size()));
}

}  // namespace

TokenStream::TokenStream(std::vector<std::unique_ptr<TokenSource>> sources)
    : sources_(std::move(sources)), starts_{0} {
    for (const auto& source : sources_) starts_.push_back(starts_.back() + source->num_tokens());
}

int64_t TokenStream::num_documents() const {
    int64_t documents = 0;
    for (const auto& source : sources_) documents += source->num_documents();
    return documents;
}

std::string TokenStream::name() const {
    return sources_.front()->name() +
           (sources_.size() > 1 ? fmt::format(" and {} more", sources_.size() - 1) : "");
}

size_t TokenStream::source_of(int64_t token) const {
    return static_cast<size_t>(std::upper_bound(starts_.begin(), starts_.end(), token) - starts_.begin()) - 1;
}

void TokenStream::read(int64_t first, int64_t count, int64_t vocab_size, int32_t* out) const {
    LEVIN_CHECK(first >= 0 && count >= 0 && first <= num_tokens() - count, name(),
                "tokens {} to {} asked for, the stream has {}", first, first + count, num_tokens());
    if (count == 0) return;
    for (size_t s = source_of(first); count > 0; ++s) {
        const int64_t n = std::min(count, starts_[s + 1] - first);
        sources_[s]->read(first - starts_[s], n, vocab_size, out);
        first += n, count -= n, out += n;
    }
}

void TokenStream::append_document_starts(int64_t first, int64_t count, std::vector<int64_t>& out) const {
    if (count <= 0) return;
    int64_t done = 0;
    for (size_t s = source_of(first); done < count; ++s) {
        const int64_t at = first + done, n = std::min(count - done, starts_[s + 1] - at);
        const size_t before = out.size();
        sources_[s]->append_document_starts(at - starts_[s], n, out);
        for (size_t i = before; i < out.size(); ++i) out[i] += done;
        done += n;
    }
}

Dataset::Dataset(const std::vector<std::string>& specs, const Dataset* beside) {
    LEVIN_REQUIRE(!specs.empty(), "data", "no data set is named; give at least one PREFIX in data.train");
    std::vector<std::unique_ptr<TokenSource>> unweighted;
    for (const std::string& text : specs) {
        const Spec spec = parse(text);
        auto source = open_token_source(spec.path);
        if (spec.weight == 0) {
            unweighted.push_back(std::move(source));
            continue;
        }
        std::vector<std::unique_ptr<TokenSource>> one;
        one.push_back(std::move(source));
        streams_.emplace_back(std::move(one));
        weights_.push_back(spec.weight);
    }
    LEVIN_REQUIRE(streams_.empty() || unweighted.empty(), "data",
                  "{} of {} data sets have a weight; give every one a weight (\"0.3 PREFIX\"), or none",
                  streams_.size(), specs.size());
    LEVIN_REQUIRE(streams_.size() <= kMostStreams, "data", "{} weighted data sets, at most {} can be mixed",
                  streams_.size(), kMostStreams);
    if (!unweighted.empty()) {
        streams_.emplace_back(std::move(unweighted));
        weights_.push_back(1);
    }
    double sum = 0;
    for (const double weight : weights_) sum += weight;
    for (double& weight : weights_) weight /= sum;
    check_tokenizers(beside);
}

const TokenSource* Dataset::described() const {
    for (const TokenStream& stream : streams_)
        for (const auto& source : stream.sources())
            if (source->info()) return source.get();
    return nullptr;
}

// The same ids mean other text under another tokenizer: a model trained on both learns nothing of either.
void Dataset::check_tokenizers(const Dataset* beside) const {
    // All that is beside has been found to have one tokenizer: one source stands for it.
    const TokenSource* first = beside ? beside->described() : nullptr;
    if (!first) first = described();
    if (!first) return;
    const std::string tokenizer = tokenizer_of(*first);
    for (const TokenStream& stream : streams_)
        for (const auto& source : stream.sources()) {
            if (!source->info() || source.get() == first) continue;
            const std::string own = tokenizer_of(*source);
            LEVIN_REQUIRE(
                own == tokenizer, source->name(),
                "was made with another tokenizer ({}) than {} ({}), and one model reads both; build "
                "one of them again with the other's tokenizer",
                own, first->name(), tokenizer);
        }
}

int64_t Dataset::num_tokens() const {
    int64_t tokens = 0;
    for (const TokenStream& stream : streams_) tokens += stream.num_tokens();
    return tokens;
}

int64_t Dataset::num_documents() const {
    int64_t documents = 0;
    for (const TokenStream& stream : streams_) documents += stream.num_documents();
    return documents;
}

void Dataset::check_vocabulary(int64_t vocab_size) const {
    for (const TokenStream& stream : streams_) {
        for (const auto& source : stream.sources()) {
            LEVIN_REQUIRE(
                !source->info() || source->info()->vocab_size <= vocab_size, source->name(),
                "was made with a {} tokenizer of {} tokens, the model's vocabulary has only {}; set "
                "model.vocab_size to at least {}",
                source->info()->tokenizer_kind, source->info()->vocab_size, vocab_size,
                source->info()->vocab_size);
        }
    }
}

uint64_t Dataset::fingerprint() const {
    std::string text;
    for (size_t s = 0; s < streams_.size(); ++s) {
        text += fmt::format("stream {:.17g}\n", weights_[s]);
        for (const auto& source : streams_[s].sources()) {
            text += fmt::format("{} {} {} {}\n", source->num_tokens(), source->num_documents(),
                                to_string(source->type()), source->info() ? source->info()->input_hash : "");
        }
    }
    return XXH3_64bits(text.data(), text.size());
}

}  // namespace levin
