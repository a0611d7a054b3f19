#include "data/builder.h"

#include <zlib.h>
#include <zstd.h>

#include <random>

#include "data/dataset.h"
#include "data/validation_split.h"
#include "tests/data/test_files.h"

namespace levin::test {
namespace {

std::string gzip(const std::string& text) {
    const TemporaryFolder folder;
    gzFile file = gzopen((folder / "x").c_str(), "wb");
    gzwrite(file, text.data(), static_cast<unsigned>(text.size()));
    gzclose(file);
    return read_text(folder / "x");
}

std::string zstd(const std::string& text) {
    std::string out(ZSTD_compressBound(text.size()), '\0');
    out.resize(ZSTD_compress(out.data(), out.size(), text.data(), text.size(), 3));
    return out;
}

BuildOptions options_for(const TemporaryFolder& folder, const std::vector<std::string>& inputs) {
    BuildOptions options;
    options.corpus.inputs = inputs;
    options.output = folder / "out/x";
    options.threads = 2;
    return options;
}

// The documents of the built shard as text; a document's eos must be there and is taken off.
std::vector<std::string> texts(const std::string& prefix) {
    const auto source = open_token_source(prefix);
    const auto tokenizer = load_tokenizer_of_shard(prefix);
    verify_tokens(*source, tokenizer->vocab_size());
    std::vector<std::string> out;
    for (auto& document : documents_of(*source)) {
        EXPECT_EQ(document.back(), tokenizer->eos_id());
        document.pop_back();
        out.push_back(tokenizer->decode(document));
    }
    return out;
}

std::string jsonl(const std::vector<std::string>& texts) {
    std::string out;
    for (const std::string& text : texts)
        out += "{\"id\": [1, {\"text\": \"no\"}], \"text\": \"" + text + "\"}\n";
    return out;
}

using Texts = std::vector<std::string>;

TEST(Builder, TextAndJsonLines) {
    const TemporaryFolder folder;
    const auto options = options_for(folder, {folder.write("a.txt", "first\n\nfile"),
                                              folder.write("b.jsonl", jsonl({"one", "t\\nwo \\u00e9"})),
                                              folder.write("c.txt", "\xEF\xBB\xBFlast\r\n")});
    const BuildResult result = build_shard(options);
    EXPECT_EQ(texts(options.output), (Texts{"first\n\nfile", "one", "t\nwo \u00E9", "last\r\n"}));
    EXPECT_EQ(result.documents, 4);
    EXPECT_EQ(result.text_bytes, 11u + 3 + 7 + 6);
    EXPECT_EQ(result.tokens, 27 + 4);
    const auto source = open_token_source(options.output);
    EXPECT_EQ(source->info()->tokenizer_kind, "byte");
    EXPECT_EQ(source->info()->input_hash.size(), 32u);
    EXPECT_EQ(source->type(), TokenType::u16);
}

TEST(Builder, CompressedInputIsTheSame) {
    const TemporaryFolder folder;
    std::string text;
    for (int i = 0; i < 200000; ++i) text += "line " + std::to_string(i * 7919 % 1000) + (i % 9 ? " " : "\n");
    BuildOptions options = options_for(folder, {folder.write("a.txt", text)});
    build_shard(options);
    const std::string bin = read_text(options.output + ".bin"), json = read_text(options.output + ".json");
    options.overwrite = true;
    // Two members and two frames, as `cat a.gz b.gz` makes them.
    const size_t half = text.size() / 2;
    for (const std::string& input :
         {folder.write("a.txt.gz", gzip(text.substr(0, half)) + gzip(text.substr(half))),
          folder.write("a.txt.zst", zstd(text.substr(0, half)) + zstd(text.substr(half)))}) {
        options.corpus.inputs = {input};
        build_shard(options);
        EXPECT_EQ(read_text(options.output + ".bin"), bin);
        EXPECT_EQ(read_text(options.output + ".json"), json);
    }
    for (const auto& [name, content] :
         {std::pair{"cut.txt.gz", gzip(text)}, std::pair{"cut.txt.zst", zstd(text)}}) {
        options.corpus.inputs = {folder.write(name, content.substr(0, content.size() / 2))};
        expect_contains(input_error([&] { build_shard(options); }), "truncated");
        std::string damaged = content;
        for (size_t i = damaged.size() / 3; i < damaged.size() / 3 + 40; ++i) damaged[i] ^= 0x55;
        options.corpus.inputs = {folder.write(name, damaged)};
        expect_contains(input_error([&] { build_shard(options); }), name);
    }
    EXPECT_EQ(read_text(options.output + ".bin"), bin);  // failed builds left the good shard alone
    EXPECT_EQ(folder.files().size(), 6u);
}

TEST(Builder, AnyNumberOfThreadsGivesTheSameBytes) {
    const TemporaryFolder folder;
    std::mt19937 random(6);
    std::string lines, text;
    for (int i = 0; i < 3000; ++i) {
        std::string words;
        for (unsigned n = 1 + random() % 30; n > 0; --n) words += "w" + std::to_string(random() % 500) + " ";
        lines += "{\"text\": \"" + words + "\"}\n";
        text += words + (random() % 5 ? "\n" : "\n\n");
    }
    BuildOptions options = options_for(folder, {folder.write("a.jsonl", lines), folder.write("b.txt", text)});
    options.corpus.piece_bytes = 1000;
    options.corpus.split = DocumentSplit::blank_lines;
    std::vector<std::string> results;
    for (const int threads : {1, 4}) {
        options.threads = threads;
        options.output = folder / ("t" + std::to_string(threads));
        build_shard(options);
        results.push_back(read_text(options.output + ".bin") + read_text(options.output + ".idx") +
                          read_text(options.output + ".json"));
    }
    EXPECT_EQ(results[0], results[1]);
}

// Pieces are cut and put together again without loss, wherever the borders of pieces fall.
TEST(Builder, LongDocumentsAreCutWithoutLoss) {
    const TemporaryFolder folder;
    std::mt19937 random(7);
    for (const size_t size : {1, 63, 64, 65, 128, 129, 1000, 5000}) {
        std::string text;
        while (text.size() < size)
            text += std::vector<std::string>{"a", "\u00E9", "\U0001F600", " ", "\n", "\u6F22"}[random() % 6];
        BuildOptions options = options_for(folder, {folder.write("a.txt", text)});
        options.overwrite = true;
        for (const size_t piece : {64, 67, 100, 4096}) {
            options.corpus.piece_bytes = piece;
            const BuildResult result = build_shard(options);
            EXPECT_EQ(texts(options.output), (Texts{text}));
            EXPECT_EQ(result.replaced_utf8, 0);
        }
    }
}

TEST(Builder, BlankLinesDivideDocuments) {
    const TemporaryFolder folder;
    const std::string text = "\n \none\ntwo\n\n\r\n\nthree\n \t\nfour " + std::string(200, 'x') + "\n\nfive";
    BuildOptions options = options_for(folder, {folder.write("a.txt", text)});
    options.corpus.split = DocumentSplit::blank_lines;
    options.overwrite = true;
    for (const size_t piece : {64, 100, 4096}) {
        options.corpus.piece_bytes = piece;
        build_shard(options);
        EXPECT_EQ(texts(options.output),
                  (Texts{"one\ntwo\n", "three\n", "four " + std::string(200, 'x') + "\n", "five"}))
            << piece;
    }
}

TEST(Builder, InvalidUtf8Policies) {
    const TemporaryFolder folder;
    BuildOptions options = options_for(folder, {folder.write("a.jsonl",
                                                             "{\"text\": \"good\"}\n{\"text\": \"b\xFF\xC3"
                                                             "d\"}\n{\"text\": \"fine\"}\n")});
    options.overwrite = true;
    BuildResult result = build_shard(options);
    EXPECT_EQ(texts(options.output), (Texts{"good",
                                            "b\uFFFD\uFFFD"
                                            "d",
                                            "fine"}));
    EXPECT_EQ(result.replaced_utf8, 2);
    options.corpus.invalid_utf8 = InvalidUtf8::skip;
    result = build_shard(options);
    EXPECT_EQ(texts(options.output), (Texts{"good", "fine"}));
    EXPECT_EQ(result.skipped_documents, 1);
    options.corpus.invalid_utf8 = InvalidUtf8::fail;
    expect_contains(input_error([&] { build_shard(options); }), "line 2 is not valid UTF-8 (byte 0xff)");
    // A long document that turns out invalid in its last piece goes altogether.
    options.corpus.invalid_utf8 = InvalidUtf8::skip;
    options.corpus.piece_bytes = 64;
    options.corpus.inputs = {folder.write("b.txt", std::string(1000, 'x') + "\xFF"),
                             folder.write("c.txt", "kept")};
    build_shard(options);
    EXPECT_EQ(texts(options.output), (Texts{"kept"}));
    options.corpus.inputs = {folder.write("d.txt", std::string("\xFF\xFE") + "h\0i\0")};
    expect_contains(input_error([&] { build_shard(options); }), "UTF-16");
}

TEST(Builder, BadLinesAreErrorsWithTheirPlace) {
    const TemporaryFolder folder;
    BuildOptions options = options_for(folder, {folder.write("a.jsonl", "")});
    options.overwrite = true;
    const auto message = [&](const std::string& line) {
        options.corpus.inputs = {
            folder.write("a.jsonl", "{\"text\": \"x\"}\n\n" + line + "\n{\"text\": \"y\"}\n")};
        options.corpus.bad_lines = BadLines::skip;
        const BuildResult result = build_shard(options);
        EXPECT_EQ(result.skipped_lines, 1);
        EXPECT_EQ(texts(options.output), (Texts{"x", "y"}));
        options.corpus.bad_lines = BadLines::fail;
        return input_error([&] { build_shard(options); });
    };
    expect_contains(message("{\"text\": \"x\""), "a.jsonl] line 3 is no valid JSON");
    expect_contains(message("{\"text\": \"\\ud800\"}"), "line 3 is no valid JSON");
    expect_contains(message("[\"text\", \"x\"]"), "line 3 is no JSON object");
    expect_contains(message("{\"content\": \"x\", \"id\": 3}"),
                    "line 3 has no key \"text\", only: content, id");
    expect_contains(message("{\"text\": 7}"), "is no string");
    expect_contains(message("{\"meta\": {\"text\": \"x\"}}"), "no key \"text\"");
    expect_contains(message(std::string(100000, '[')), "line 3");
    options.corpus.inputs = {folder.write("k.jsonl", "{\"content\": \"z\"}")};
    options.corpus.text_key = "content";
    build_shard(options);
    EXPECT_EQ(texts(options.output), (Texts{"z"}));
}

TEST(Builder, EmptyCorpusAndMissingFiles) {
    const TemporaryFolder folder;
    for (const char* content : {"", "\xEF\xBB\xBF"}) {
        const auto options = options_for(folder, {folder.write("a.txt", content)});
        expect_contains(input_error([&] { build_shard(options); }), "corpus is empty");
    }
    expect_contains(input_error([&] {
                        build_shard(options_for(folder, {folder.write("e.jsonl", "\n{\"text\": \"\"}\n\n")}));
                    }),
                    "corpus is empty");
    expect_contains(input_error([&] { build_shard(options_for(folder, {folder / "none.txt"})); }),
                    "none.txt");
    expect_contains(input_error([&] { build_shard(options_for(folder, {folder / ""})); }), "is a folder");
    expect_contains(input_error([&] { build_shard(options_for(folder, {folder.write("x.parquet", "x")})); }),
                    ".jsonl");
    expect_contains(input_error([&] { build_shard(options_for(folder, {folder.write("x.pdf", "x")})); }),
                    "--format");
    expect_contains(input_error([&] { build_shard(options_for(folder, {})); }), "no input files");
    EXPECT_TRUE(std::filesystem::is_empty(folder / "out"));  // no half shard, no temporary file
    BuildOptions options = options_for(folder, {folder.write("a.txt", "text")});
    options.tokenizer = "wordpiece";
    expect_contains(input_error([&] { build_shard(options); }), "wordpiece");
}

TEST(Builder, ExistingOutputIsKept) {
    const TemporaryFolder folder;
    BuildOptions options = options_for(folder, {folder.write("a.txt", "old")});
    build_shard(options);
    options.corpus.inputs = {folder.write("b.txt", "new")};
    expect_contains(input_error([&] { build_shard(options); }), "--overwrite");
    EXPECT_EQ(texts(options.output), (Texts{"old"}));
    options.overwrite = true;
    build_shard(options);
    EXPECT_EQ(texts(options.output), (Texts{"new"}));
    options.output = folder / "b";
    options.corpus.inputs = {folder.write("b.json", "{\"text\": \"x\"}")};
    options.corpus.format = TextFormat::jsonl;
    expect_contains(input_error([&] { build_shard(options); }), "is an input and an output");
}

TEST(Builder, WithoutEos) {
    const TemporaryFolder folder;
    BuildOptions options = options_for(folder, {folder.write("a.txt", "ab")});
    options.append_eos = false;
    build_shard(options);
    EXPECT_EQ(documents_of(*open_token_source(options.output)), (Documents{{'a', 'b'}}));
}

TEST(Builder, ValidationTakesDocumentsOrTheTail) {
    const TemporaryFolder folder;
    std::vector<std::string> documents;
    for (int i = 0; i < 2000; ++i) documents.push_back("document " + std::to_string(i));
    BuildOptions options = options_for(folder, {folder.write("a.jsonl", jsonl(documents))});
    options.validation_fraction = 0.05;
    const BuildResult result = build_shard(options);
    Texts training = texts(options.output), validation = texts(options.output + "-validation");
    EXPECT_NEAR(static_cast<double>(validation.size()), 100, 40);
    EXPECT_EQ(result.validation_documents, static_cast<int64_t>(validation.size()));
    training.insert(training.end(), validation.begin(), validation.end());
    std::sort(training.begin(), training.end());
    std::sort(documents.begin(), documents.end());
    EXPECT_EQ(training, documents);  // each in one of the two

    options.output = folder / "one";
    options.corpus.inputs = {folder.write("a.txt", std::string(900, 'a') + std::string(99, 'b'))};
    options.validation_fraction = 0.1;
    build_shard(options);
    const auto head = open_token_source(folder / "one"), tail = open_token_source(folder / "one-validation");
    EXPECT_EQ(head->num_tokens(), 900);
    EXPECT_EQ(tail->num_tokens(), 100);
    EXPECT_EQ(tail->document(0)[99], 256);
    for (int64_t i = 0; i < 99; ++i) EXPECT_EQ(tail->document(0)[i], 'b');
}

TEST(ValidationSplit, NeverTakesTooMuch) {
    EXPECT_EQ(choose_validation({1000}, 0.1).tail, 100);
    EXPECT_EQ(choose_validation({10, 10, 10, 100000}, 0.01).tail, 1000);
    EXPECT_EQ(choose_validation({2}, 0.999).tail, 1);
    const ValidationChoice many = choose_validation(std::vector<int64_t>(100000, 10), 0.01);
    EXPECT_EQ(many.documents.size(), 100000u);
    EXPECT_NEAR(static_cast<double>(std::count(many.documents.begin(), many.documents.end(), true)), 1000,
                150);
}

TEST(Builder, ProgressIsReported) {
    const TemporaryFolder folder;
    BuildOptions options = options_for(folder, {folder.write("a.txt", std::string(1 << 20, 'x'))});
    BuildProgress last;
    options.progress = [&](const BuildProgress& progress) { last = progress; };
    build_shard(options);
    EXPECT_EQ(last.bytes_read, last.total_bytes);
    EXPECT_EQ(last.total_bytes, uint64_t{1} << 20);
    EXPECT_EQ(last.documents, 1);
}

}  // namespace
}  // namespace levin::test
