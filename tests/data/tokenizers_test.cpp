// Byte and byte-level BPE tokenizers, and decoding in a stream.
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "data/byte_level.h"
#include "data/normalize.h"
#include "data/pretokenizer.h"
#include "data/tokenizer.h"
#include "data/utf8.h"
#include "tests/data/test_files.h"

namespace levin::test {
namespace {

using Json = nlohmann::json;
using Ids = std::vector<int32_t>;

constexpr const char* kCl100k =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

const Json kByteLevel{{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}};
const Json kNoRegex{{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
Json split(const std::string& regex) {
    return {{"type", "Split"}, {"pattern", {{"Regex", regex}}}, {"behavior", "Isolated"}, {"invert", false}};
}
Json sequence(const std::vector<Json>& steps) { return {{"type", "Sequence"}, {"pretokenizers", steps}}; }

// tokenizer.json with the 256 bytes as ids 0..255 and one more token per merge, then the added tokens.
Json tokenizer_json(const std::vector<std::string>& merges, const Json& pre = kByteLevel,
                    bool pairs = false) {
    Json vocab;
    for (int b = 0; b < 256; ++b) vocab[byte_level_characters()[static_cast<size_t>(b)]] = b;
    Json list = Json::array();
    for (const std::string& merge : merges) {
        const size_t space = merge.find(' ');
        const std::string left = merge.substr(0, space), right = merge.substr(space + 1);
        const size_t next = vocab.size();
        if (!vocab.contains(left + right)) vocab[left + right] = next;
        list.push_back(pairs ? Json{left, right} : Json(merge));
    }
    const size_t size = vocab.size();
    return {{"version", "1.0"},
            {"normalizer", nullptr},
            {"pre_tokenizer", pre},
            {"added_tokens",
             {{{"id", size}, {"content", "<|endoftext|>"}, {"special", true}, {"single_word", false}}}},
            {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", list}}}};
}

std::unique_ptr<Tokenizer> make(const Json& json, const std::string& config = "") {
    return make_bpe_tokenizer(json.dump(), config, "tokenizer.json");
}

TEST(ByteTokenizer, IdsAreBytes) {
    const auto tokenizer = load_tokenizer("byte");
    EXPECT_EQ(tokenizer->vocab_size(), 257);
    EXPECT_EQ(tokenizer->eos_id(), 256);
    EXPECT_EQ(tokenizer->encode("A\xC3\xA9"), (Ids{65, 0xC3, 0xA9}));
    EXPECT_EQ(tokenizer->encode("a<|endoftext|>b"), (Ids{'a', 256, 'b'}));
    EXPECT_EQ(tokenizer->encode("<|endoftext|>", SpecialTokens::text).size(), 13u);
    EXPECT_EQ(tokenizer->decode(Ids{65, 256, 66}), "AB");
    EXPECT_EQ(tokenizer->token_name(256), "<|endoftext|>");
    input_error([&] { tokenizer->decode(Ids{257}); });
    input_error([&] { tokenizer->decode(Ids{-1}); });
}

TEST(ByteTokenizer, ExportHasTheSameIds) {
    const TemporaryFolder folder;
    const auto tokenizer = load_tokenizer("byte");
    EXPECT_EQ(tokenizer->save_to(folder / "."),
              (std::vector<std::string>{"tokenizer.json", "tokenizer_config.json"}));
    const auto exported = load_tokenizer(folder / ".");
    EXPECT_EQ(exported->kind(), "bpe");
    EXPECT_EQ(exported->vocab_size(), 257);
    EXPECT_EQ(exported->eos_id(), 256);
    std::string text;
    for (uint32_t code = 1; code < 0x500; ++code) {
        text += code < 0x80
                    ? std::string(1, static_cast<char>(code))
                    : std::string{static_cast<char>(0xC0 | code >> 6), static_cast<char>(0x80 | (code & 63))};
    }
    text += "<|endoftext|>  \n\n x";
    EXPECT_EQ(exported->encode(text), tokenizer->encode(text));
    EXPECT_EQ(exported->decode(exported->encode(text)), tokenizer->decode(tokenizer->encode(text)));
}

TEST(Bpe, MergesByRankThenLeftmost) {
    // ids: 256 "ab", 257 "bc", 258 "abc", 259 "aa", 260 "aaaa"
    const auto tokenizer = make(tokenizer_json({"a b", "b c", "ab c", "a a", "aa aa"}));
    EXPECT_EQ(tokenizer->encode("abc"), (Ids{258}));  // a b (rank 0), then ab c
    EXPECT_EQ(tokenizer->encode("bc"), (Ids{257}));
    EXPECT_EQ(tokenizer->encode("aaa"), (Ids{259, 'a'}));  // the leftmost pair first
    EXPECT_EQ(tokenizer->encode("aaaaa"), (Ids{260, 'a'}));
    EXPECT_EQ(tokenizer->encode("aab"), (Ids{'a', 256}));       // rank 0 wins over the pair to its left
    EXPECT_EQ(tokenizer->encode("a b"), (Ids{'a', ' ', 'b'}));  // words are apart
    EXPECT_EQ(tokenizer->vocab_size(), 262);
    EXPECT_EQ(tokenizer->eos_id(), 261);  // by its customary name
}

TEST(Bpe, MergesAsPairsAndIgnoreMerges) {
    EXPECT_EQ(make(tokenizer_json({"a b", "ab c"}, kByteLevel, true))->encode("abc"), (Ids{257}));
    Json json = tokenizer_json({"a b", "c d"});
    json["model"]["vocab"]["abcd"] = 300;
    EXPECT_EQ(make(json)->encode("abcd"), (Ids{256, 257}));
    json["model"]["ignore_merges"] = true;
    EXPECT_EQ(make(json)->encode("abcd"), (Ids{300}));
    EXPECT_EQ(make(json)->encode("abcdab"), (Ids{256, 257, 256}));
}

// The queue for long words and the scan for short ones must agree: a long word of repeats, against a plain
// loop.
TEST(Bpe, LongWordsEqualTheDefinition) {
    const std::vector<std::string> merges{"a b",   "b a",     "ab ab", "a a",      "ab a",
                                          "aa ba", "abab ab", "b b",   "abab abab"};
    const Json json = tokenizer_json(merges, kNoRegex);
    const auto tokenizer = make(json);
    std::mt19937 random(4);
    for (const size_t length : {2, 30, 47, 48, 49, 50, 100, 1000}) {
        std::string word;
        std::vector<std::string> symbols;
        for (size_t i = 0; i < length; ++i) word += random() % 3 == 0 ? 'b' : 'a';
        for (const char c : word) symbols.emplace_back(1, c);
        for (;;) {
            size_t best = merges.size(), at = 0;
            for (size_t i = 0; i + 1 < symbols.size(); ++i) {
                const size_t rank = static_cast<size_t>(
                    std::find(merges.begin(), merges.end(), symbols[i] + " " + symbols[i + 1]) -
                    merges.begin());
                if (rank < best) best = rank, at = i;
            }
            if (best == merges.size()) break;
            symbols[at] += symbols[at + 1];
            symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(at) + 1);
        }
        Ids expected;
        for (const std::string& symbol : symbols)
            expected.push_back(json["model"]["vocab"][symbol].get<int32_t>());
        EXPECT_EQ(tokenizer->encode(word), expected) << word;
    }
}

std::vector<std::string> words(const Json& pre, const std::string& text) {
    const Pretokenizer pretokenizer(pre, "test");
    Pretokenizer::Scratch scratch;
    std::vector<std::string> out;
    for (const std::string_view word : pretokenizer.split(text, scratch)) out.emplace_back(word);
    return out;
}

TEST(Pretokenizer, Gpt2AndCl100kPatterns) {
    using Words = std::vector<std::string>;
    EXPECT_EQ(words(kByteLevel, "Hello  it's 12 x!\n"),
              (Words{"Hello", " ", " it", "'s", " 12", " x", "!", "\n"}));
    EXPECT_EQ(words(sequence({split(kCl100k), kNoRegex}), "I'LL go 12345\n\n .Net"),
              (Words{"I", "'LL", " go", " ", "123", "45", "\n\n", " .", "Net"}));
    EXPECT_EQ(words(kNoRegex, "two words"), (Words{"two words"}));
    // U+180E is no white space (PCRE2's \s says it is), U+0085 is.
    EXPECT_EQ(words(kByteLevel, "a\u180Eb"), (Words{"a", "\u180E", "b"}));
    EXPECT_EQ(words(kByteLevel, "!\u180E!"), (Words{"!\u180E!"}));
    EXPECT_EQ(words(kByteLevel, "a\u0085b"), (Words{"a", "\u0085", "b"}));
}

TEST(Pretokenizer, PrefixSpaceDigitsAndSplits) {
    using Words = std::vector<std::string>;
    Json prefix = kByteLevel;
    prefix["add_prefix_space"] = true;
    EXPECT_EQ(words(prefix, "ab"), (Words{" ab"}));
    EXPECT_EQ(words(prefix, " ab"), (Words{" ab"}));
    EXPECT_EQ(words(sequence({{{"type", "Digits"}, {"individual_digits", true}}, kNoRegex}), "a12"),
              (Words{"a", "1", "2"}));
    Json removed = {
        {"type", "Split"}, {"pattern", {{"String", "."}}}, {"behavior", "Removed"}, {"invert", false}};
    EXPECT_EQ(words(sequence({removed, kNoRegex}), "a.b..c"), (Words{"a", "b", "c"}));
    removed["invert"] = true;
    EXPECT_EQ(words(sequence({removed, kNoRegex}), "a.b..c"), (Words{".", ".", "."}));
    EXPECT_EQ(words(sequence({split("x*"), kNoRegex}), "axxb"),
              (Words{"a", "xx", "b"}));  // empty matches divide nothing
}

TEST(Bpe, AddedTokensAreFoundLongestFirst) {
    Json json = tokenizer_json({});
    json["added_tokens"].push_back({{"id", 300}, {"content", "<|end"}, {"special", false}});
    json["added_tokens"].push_back(
        {{"id", 301}, {"content", "[M]"}, {"special", true}, {"lstrip", true}, {"rstrip", true}});
    const auto tokenizer = make(json);
    EXPECT_EQ(tokenizer->encode("<|endoftext|>"), (Ids{256}));
    EXPECT_EQ(tokenizer->encode("x<|end<"), (Ids{'x', 300, '<'}));
    EXPECT_EQ(tokenizer->encode("a \t[M]\n b"), (Ids{'a', 301, 'b'}));
    EXPECT_EQ(tokenizer->encode("<|endoftext|>", SpecialTokens::text).front(), 300);  // it is not special
    EXPECT_EQ(tokenizer->decode(Ids{'x', 300, 256}), "x<|end");
    EXPECT_EQ(tokenizer->vocab_size(), 302);
}

TEST(Bpe, SpecialIdsFromTheConfig) {
    Json json = tokenizer_json({"a b"});
    json["added_tokens"].push_back({{"id", 280}, {"content", "[B]"}, {"special", true}});
    const auto tokenizer =
        make(json, R"({"bos_token": {"content": "[B]"}, "eos_token": "<|endoftext|>", "pad_token": null})");
    EXPECT_EQ(tokenizer->bos_id(), 280);
    EXPECT_EQ(tokenizer->eos_id(), 257);
    EXPECT_EQ(tokenizer->pad_id(), -1);
    const TemporaryFolder folder;
    tokenizer->save_to(folder / ".");
    const auto again = load_tokenizer(folder / "tokenizer.json");
    EXPECT_EQ(again->bos_id(), 280);
    EXPECT_EQ(again->encode("abab[B]"), tokenizer->encode("abab[B]"));
}

TEST(Bpe, RefusesWhatItDoesNotDo) {
    const auto message = [](const std::vector<std::pair<std::string, Json>>& changes) {
        Json json = tokenizer_json({"a b"});
        for (const auto& [pointer, value] : changes) json[Json::json_pointer(pointer)] = value;
        return input_error([&] { make(json); });
    };
    expect_contains(message({{"/model/type", "WordPiece"}}), "WordPiece");
    expect_contains(message({{"/model/type", "Unigram"}}), "only BPE");
    expect_contains(message({{"/normalizer", {{"type", "Lowercase"}}}}), "Lowercase");
    expect_contains(message({{"/pre_tokenizer", {{"type", "Metaspace"}}}}), "Metaspace");
    expect_contains(message({{"/pre_tokenizer", nullptr}}), "ByteLevel");
    expect_contains(message({{"/pre_tokenizer", sequence({split("(x"), kNoRegex})}}), "does not compile");
    expect_contains(message({{"/pre_tokenizer", sequence({split("[a&&b]"), kNoRegex})}}), "intersection");
    expect_contains(message({{"/pre_tokenizer/type", 7}}), "pre_tokenizer");
    expect_contains(message({{"/model/dropout", 0.1}}), "dropout");
    expect_contains(message({{"/model/byte_fallback", true}}), "byte_fallback");
    expect_contains(message({{"/model/end_of_word_suffix", "</w>"}}), "end_of_word_suffix");
    expect_contains(message({{"/model/merges/0", "a zz"}}), "lacks");
    expect_contains(message({{"/model/merges/0", "ab"}}), "merge 0");
    expect_contains(message({{"/model/merges/0", 3}}), "merge 0");
    expect_contains(message({{"/model/vocab/a", -1}}), "id -1");
    expect_contains(message({{"/model/vocab/a", int64_t{1} << 40}}), "id 1099511627776");
    expect_contains(message({{"/model/vocab", Json::array()}}), "vocab");
    expect_contains(message({{"/added_tokens/0/single_word", true}}), "single_word");
    expect_contains(message({{"/added_tokens/0/id", "x"}}), "no id");
    expect_contains(input_error([] { make_bpe_tokenizer("{\"model\": ", "", "t"); }), "no JSON");
    expect_contains(input_error([] { make_bpe_tokenizer(std::string(100000, '['), "", "t"); }), "no JSON");
    Json json = tokenizer_json({});
    json["model"]["vocab"].erase("z");
    const auto tokenizer = make(json);
    expect_contains(input_error([&] { tokenizer->encode("xyz"); }), "0x7a");
}

TEST(Tokenizer, UnknownKindsSayWhatIsKnown) {
    const TemporaryFolder folder;
    expect_contains(input_error([] { load_tokenizer("wordpiece"); }), "expected byte");
    expect_contains(input_error([&] { load_tokenizer(folder / "none.json"); }), "none.json");
    expect_contains(input_error([&] { load_tokenizer(folder / "."); }), "neither");
}

TEST(Normalize, FormC) {
    // From NormalizationTest.txt of the Unicode standard: singletons, marks in the wrong order, Hangul,
    // exclusions.
    const std::vector<std::pair<std::string, std::string>> cases{
        {"e\u0301", "\u00E9"},
        {"\u212B", "\u00C5"},
        {"\u1E0A\u0323", "\u1E0C\u0307"},
        {"\u0044\u0307\u0323", "\u1E0C\u0307"},
        {"\u1100\u1161\u11A8", "\uAC01"},
        {"\uAC00\u11A8", "\uAC01"},
        {"\u0958", "\u0915\u093C"},
        {"a\u0315\u0300\u05AE\u0300b", "\u00E0\u05AE\u0300\u0315b"},
        {"\u0061\u0301\u0301", "\u00E1\u0301"},
        {"plain", "plain"},
        {"\u6F22\u5B57", "\u6F22\u5B57"},
        {"\u0301", "\u0301"},
    };
    for (const auto& [text, normalized] : cases) {
        EXPECT_EQ(to_nfc(text), normalized) << text;
        EXPECT_EQ(to_nfc(normalized), normalized) << text;
        EXPECT_TRUE(text == normalized || !is_nfc_quick(text)) << text;
    }
    EXPECT_TRUE(is_nfc_quick("caf\u00E9 \u6F22\u5B57 \uAC01"));
    Json json = tokenizer_json({});
    json["normalizer"] = {{"type", "NFC"}};
    EXPECT_EQ(make(json)->encode("e\u0301"), (Ids{0xC3, 0xA9}));
}

TEST(Utf8, InvalidSequencesBecomeReplacementCharacters) {
    const auto mend = [](const std::string& text) {
        int64_t count = 0;
        const std::string out = replace_invalid_utf8(text, count);
        return std::make_pair(out, count);
    };
    const std::string r(kReplacementCharacter);
    EXPECT_EQ(mend("plain \u00E9 \U0001F600"),
              std::make_pair(std::string("plain \u00E9 \U0001F600"), int64_t{0}));
    EXPECT_EQ(mend("a\xFFz"), std::make_pair("a" + r + "z", int64_t{1}));
    EXPECT_EQ(mend("a\xE2\x82z"), std::make_pair("a" + r + "z", int64_t{1}));        // a character cut off
    EXPECT_EQ(mend("\xC0\x80"), std::make_pair(r + r, int64_t{2}));                  // overlong
    EXPECT_EQ(mend("\xED\xA0\x80"), std::make_pair(r + r + r, int64_t{3}));          // surrogate
    EXPECT_EQ(mend("\xF4\x90\x80\x80"), std::make_pair(r + r + r + r, int64_t{4}));  // above U+10FFFF
    EXPECT_EQ(mend("\xF0\x9F\x98"), std::make_pair(r, int64_t{1}));
}

TEST(StreamDecoder, GivesWholeCharacters) {
    const auto tokenizer = load_tokenizer("byte");
    StreamDecoder decoder(*tokenizer);
    EXPECT_EQ(decoder.push('a'), "a");
    EXPECT_EQ(decoder.push(0xE2), "");
    EXPECT_EQ(decoder.push(0x82), "");
    EXPECT_EQ(decoder.push(0xAC), "\u20AC");
    EXPECT_EQ(decoder.push(0xFF), "\uFFFD");
    EXPECT_EQ(decoder.push(0xE2), "");
    EXPECT_EQ(decoder.push('b'), "\uFFFDb");
    EXPECT_EQ(decoder.push(256), "");
    EXPECT_EQ(decoder.push(0xF0), "");
    EXPECT_EQ(decoder.finish(), "\uFFFD");
    EXPECT_EQ(decoder.finish(), "");
}

TEST(Bpe, RoundTripOfAnyBytesFromManyThreads) {
    const auto tokenizer = make(tokenizer_json({"t h", "th e", "\u0120 the", "e r", "\u00C3 \u00A9"},
                                               sequence({split(kCl100k), kNoRegex})));
    const std::vector<std::string> pieces{"the ",  "\u00E9", "\n",         "  ", "er",
                                          "12345", "\u6F22", "\U0001F600", "'s", "x"};
    std::vector<std::thread> threads;
    for (unsigned seed = 0; seed < 4; ++seed) {
        threads.emplace_back([&, seed] {
            std::mt19937 random(seed);
            for (int i = 0; i < 300; ++i) {
                std::string text;
                for (unsigned n = random() % 40; n > 0; --n) text += pieces[random() % pieces.size()];
                EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), text);
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
}

// A cut must not change the tokens.
TEST(Bpe, CutsDoNotShow) {
    const auto tokenizer =
        make(tokenizer_json({"a b", "\u010A \u010A", "ab a"}, sequence({split(kCl100k), kNoRegex})));
    std::mt19937 random(8);
    for (int i = 0; i < 500; ++i) {
        std::string text;
        for (int n = 0; n < 40; ++n) text += "ab  \n\n.1'"[random() % 9];
        const TextCut cut = tokenizer->find_cut(text);
        if (cut.left_end == 0) continue;
        Ids parts = tokenizer->encode(text.substr(0, cut.left_end));
        tokenizer->encode(std::string_view(text).substr(cut.right_begin), SpecialTokens::parse, parts);
        EXPECT_EQ(parts, tokenizer->encode(text));
    }
}

}  // namespace
}  // namespace levin::test
