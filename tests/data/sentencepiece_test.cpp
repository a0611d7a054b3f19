// SentencePiece models are trained here, on text that is made here.
#include <nlohmann/json.hpp>
#include <random>

#include "data/sentencepiece_export.h"
#include "data/tokenizer.h"
#include "data/tokenizer_trainer.h"
#include "tests/data/test_files.h"

namespace levin::test {
namespace {

std::string some_text(unsigned seed, int lines) {
    const std::vector<std::string> words{"the",  "lightning", "attention",     "decays", "over", "time",
                                         "with", "state",     "key",           "value",  "head", "norm",
                                         "and",  "gates",     "\u00E9t\u00E9", "12"};
    std::mt19937 random(seed);
    std::string text;
    for (int line = 0; line < lines; ++line) {
        for (unsigned n = 3 + random() % 9; n > 0; --n) {
            text += words[random() % words.size()];
            if (random() % 7 == 0) text += words[random() % words.size()];
            text += n > 1 ? (random() % 20 == 0 ? "  " : " ") : "\n";
        }
    }
    return text;
}

std::string trained(const std::string& type, bool byte_fallback, int vocab_size) {
    const TemporaryFolder folder;
    TokenizerTrainOptions options;
    options.corpus.inputs = {folder.write("a.txt", some_text(1, 400))};
    options.vocab_size = vocab_size;
    options.model_type = type;
    options.byte_fallback = byte_fallback;
    options.threads = 1;
    return train_sentencepiece(options);
}

const std::string& bpe_model() {
    static const std::string model = trained("bpe", true, 420);
    return model;
}

TEST(SentencePiece, RoundTripsAnyText) {
    for (const std::string& model : {bpe_model(), trained("unigram", true, 330)}) {
        const auto tokenizer = make_sentencepiece_tokenizer(model, "m");
        EXPECT_EQ(tokenizer->kind(), "sentencepiece");
        EXPECT_EQ(tokenizer->bos_id(), 1);
        EXPECT_EQ(tokenizer->eos_id(), 2);
        EXPECT_EQ(tokenizer->pad_id(), -1);
        for (const std::string text : {"the attention decays", " two  spaces ", "line\nline\n\nline",
                                       "\u6F22\U0001F600 \t x", "", "a", " ", "unseen WORDS 3.14"}) {
            const auto ids = tokenizer->encode(text);
            EXPECT_EQ(tokenizer->decode(ids), text);
            StreamDecoder decoder(*tokenizer);
            std::string streamed;
            for (const int32_t id : ids) streamed += decoder.push(id);
            EXPECT_EQ(streamed + decoder.finish(), text);
        }
        EXPECT_LT(tokenizer->encode("the attention decays").size(), 8u);
    }
}

// Words are encoded one by one and remembered; the library's own encoding of the whole is what it must equal.
// A cut of a long text must not show either.
TEST(SentencePiece, WordsAloneEqualTheWholeText) {
    const auto tokenizer = make_sentencepiece_tokenizer(bpe_model(), "m");
    const std::string text = some_text(2, 30);
    const auto whole = tokenizer->encode(text);
    EXPECT_EQ(tokenizer->decode(whole), text);
    std::mt19937 random(3);
    for (int i = 0; i < 100; ++i) {
        const size_t end = 10 + random() % (text.size() - 10);
        const TextCut cut = tokenizer->find_cut(std::string_view(text).substr(0, end));
        if (cut.left_end == 0) continue;
        std::vector<int32_t> parts;
        tokenizer->encode(std::string_view(text).substr(0, cut.left_end), SpecialTokens::text, parts);
        tokenizer->encode(std::string_view(text).substr(cut.right_begin), SpecialTokens::text, parts);
        EXPECT_EQ(parts, whole);
    }
}

TEST(SentencePiece, SavesWhatItLoaded) {
    const TemporaryFolder folder;
    const auto tokenizer = make_sentencepiece_tokenizer(bpe_model(), "m");
    EXPECT_EQ(tokenizer->save_to(folder / "."),
              (std::vector<std::string>{"tokenizer.model", "tokenizer_config.json", "tokenizer.json"}));
    const auto json = nlohmann::json::parse(read_text(folder / "tokenizer.json"));
    EXPECT_EQ(json["model"]["type"], "BPE");
    EXPECT_EQ(json["model"]["vocab"].size(), 420u);
    EXPECT_FALSE(json["model"]["merges"].empty());
    for (const auto& merge : json["model"]["merges"]) {
        EXPECT_TRUE(
            json["model"]["vocab"].contains(merge[0].get<std::string>() + merge[1].get<std::string>()));
    }
    EXPECT_EQ(read_text(folder / "tokenizer.model"), bpe_model());
    const auto again = load_tokenizer(folder / ".");
    EXPECT_EQ(again->encode("the state"), tokenizer->encode("the state"));
}

// Scores and ids by hand: transformers itself compares them where it is installed.
TEST(SentencePiece, UnigramModelsAreExportedAsJson) {
    const TemporaryFolder folder;
    const std::string model = trained("unigram", true, 330);
    const auto tokenizer = make_sentencepiece_tokenizer(model, "m");
    EXPECT_EQ(tokenizer->save_to(folder / ".").back(), "tokenizer.json");
    const auto json = nlohmann::json::parse(read_text(folder / "tokenizer.json"));
    EXPECT_EQ(json["model"]["type"], "Unigram");
    ASSERT_EQ(json["model"]["vocab"].size(), 330u);
    for (int32_t id = 0; id < 330; ++id) {
        EXPECT_EQ(json["model"]["vocab"][static_cast<size_t>(id)][0], tokenizer->token_name(id));
    }
    EXPECT_EQ(json["added_tokens"].size(), 3u);  // <unk>, <s>, </s>
    EXPECT_EQ(load_tokenizer(folder / ".")->encode("the state"), tokenizer->encode("the state"));
    EXPECT_EQ(sentencepiece_traits(bpe_model()).unigram, false);
    EXPECT_EQ(sentencepiece_traits(model).identity_normalizer, true);
    for (size_t size = 0; size < model.size(); size += 7) sentencepiece_traits(model.substr(0, size));
}

TEST(SentencePiece, DamagedModelsAreRefused) {
    input_error([] { make_sentencepiece_tokenizer("", "m"); });
    input_error([] { make_sentencepiece_tokenizer("no model", "m"); });
    input_error([] { make_sentencepiece_tokenizer(bpe_model().substr(0, bpe_model().size() / 2 + 1), "m"); });
}

TEST(SentencePiece, TrainingSaysWhatIsWrong) {
    const TemporaryFolder folder;
    TokenizerTrainOptions options;
    options.corpus.inputs = {folder.write("a.txt", "tiny corpus\n")};
    options.vocab_size = 5000;
    expect_contains(input_error([&] { train_sentencepiece(options); }), "SentencePiece");
    options.model_type = "wordpiece";
    expect_contains(input_error([&] { train_sentencepiece(options); }), "wordpiece");
    options.model_type = "bpe";
    options.vocab_size = 10;
    expect_contains(input_error([&] { train_sentencepiece(options); }), "10 pieces");
    options.vocab_size = 400;
    options.corpus.inputs = {folder.write("empty.txt", "")};
    expect_contains(input_error([&] { train_sentencepiece(options); }), "empty");
}

}  // namespace
}  // namespace levin::test
