#include "data/megatron_shard.h"

#include <random>

#include "tests/data/test_files.h"

namespace levin::test {
namespace {

const Documents kDocuments{{1, 2, 3}, {}, {65535}, {4, 5, 6, 7}, {9}};

TEST(MegatronShard, RoundTripOfEveryType) {
    const std::vector<std::pair<TokenType, Documents>> cases{
        {TokenType::u8, {{0, 255}, {7}}},        {TokenType::i8, {{0, 127}, {7}}},
        {TokenType::i16, {{0, 32767}, {}, {1}}}, {TokenType::u16, kDocuments},
        {TokenType::i32, {{1 << 30}, {5, 0}}},   {TokenType::i64, {{INT32_MAX, 0}, {3}}},
    };
    for (const auto& [type, documents] : cases) {
        const TemporaryFolder folder;
        write_shard(folder / "x", documents, type);
        const auto source = open_token_source(folder / "x");
        EXPECT_EQ(source->type(), type);
        EXPECT_EQ(documents_of(*source), documents);
        EXPECT_EQ(folder.files(), (std::vector<std::string>{"x.bin", "x.idx"}));
    }
}

TEST(MegatronShard, HeaderIsWhatMegatronWrites) {
    const TemporaryFolder folder;
    write_shard(folder / "x", {{1, 2}, {3}});
    std::string expected("MMIDIDX\0\0", 9);
    expected += bytes_of<uint64_t>({1}) + std::string("\x08", 1) + bytes_of<uint64_t>({2, 3});
    expected += bytes_of<int32_t>({2, 1}) + bytes_of<int64_t>({0, 4}) + bytes_of<int64_t>({0, 1, 2});
    EXPECT_EQ(read_text(folder / "x.idx"), expected);
    EXPECT_EQ(read_text(folder / "x.bin"), bytes_of<uint16_t>({1, 2, 3}));
}

TEST(MegatronShard, ReadAndDocumentStarts) {
    const TemporaryFolder folder;
    write_shard(folder / "x", kDocuments);
    const auto source = open_token_source(folder / "x");
    ASSERT_EQ(source->num_tokens(), 9);
    std::vector<int32_t> all(9), part(4);
    source->read(0, 9, 65536, all.data());
    EXPECT_EQ(all, (std::vector<int32_t>{1, 2, 3, 65535, 4, 5, 6, 7, 9}));
    source->read(2, 4, 65536, part.data());
    EXPECT_EQ(part, (std::vector<int32_t>{3, 65535, 4, 5}));
    std::vector<int64_t> starts;
    source->append_document_starts(0, 9, starts);
    EXPECT_EQ(starts, (std::vector<int64_t>{0, 3, 4, 8}));  // the empty document starts nothing
    starts.clear();
    source->append_document_starts(1, 3, starts);
    EXPECT_EQ(starts, (std::vector<int64_t>{2}));
    EXPECT_EQ(source->document_of(2), 0);
    EXPECT_EQ(source->document_of(3), 2);
    EXPECT_EQ(source->document_of(8), 4);
}

TEST(MegatronShard, TokenBeyondTheVocabularyNamesItsPlace) {
    const TemporaryFolder folder;
    write_shard(folder / "x", kDocuments);
    const auto source = open_token_source(folder / "x");
    const std::string message = input_error([&] { verify_tokens(*source, 1000); });
    expect_contains(message, "x.bin");
    expect_contains(message, "token 65535 at position 0 of document 2 (token 3 of the file)");
    expect_contains(message, "vocabulary of 1000");
    write_shard(folder / "n", {{1, -5}}, TokenType::i32);
    expect_contains(input_error([&] { verify_tokens(*open_token_source(folder / "n"), 1000); }), "token -5");
    verify_tokens(*source, 65536);
}

// A shard by hand: lengths, byte offsets, document entries.
std::string index_bytes(const std::vector<int32_t>& lengths, const std::vector<int64_t>& offsets,
                        const std::vector<int64_t>& documents, uint8_t code = 8, uint64_t version = 1) {
    return std::string("MMIDIDX\0\0", 9) + bytes_of<uint64_t>({version}) +
           std::string(1, static_cast<char>(code)) + bytes_of<uint64_t>({lengths.size(), documents.size()}) +
           bytes_of(lengths) + bytes_of(offsets) + bytes_of(documents);
}

TEST(MegatronShard, HolesBetweenDocumentsAreRead) {
    const TemporaryFolder folder;
    folder.write("x.bin", bytes_of<uint16_t>({90, 1, 2, 91, 92, 3, 4, 5}));
    folder.write("x.idx", index_bytes({1, 1, 2}, {2, 4, 10}, {0, 2, 3}));
    const auto source = open_token_source(folder / "x");
    EXPECT_EQ(documents_of(*source), (Documents{{1, 2}, {3, 4}}));
    std::vector<int32_t> all(4);
    source->read(0, 4, 100, all.data());
    EXPECT_EQ(all, (std::vector<int32_t>{1, 2, 3, 4}));
    source->read(1, 2, 100, all.data());
    EXPECT_EQ(all[1], 3);
}

TEST(MegatronShard, LyingIndexesAreRefused) {
    const TemporaryFolder folder;
    folder.write("x.bin", bytes_of<uint16_t>({1, 2, 3, 4}));
    const auto message = [&](const std::string& index) {
        folder.write("x.idx", index);
        return input_error([&] { open_token_source(folder / "x"); });
    };
    expect_contains(message(index_bytes({2, 3}, {0, 4}, {0, 1, 2})), ".bin file has 8 bytes");
    expect_contains(message(index_bytes({2, -2}, {0, 4}, {0, 1, 2})), "length -2");
    expect_contains(message(index_bytes({2, 2}, {0, 2}, {0, 1, 2})), "before the end");
    expect_contains(message(index_bytes({2, 1}, {0, 5}, {0, 1, 2})), "multiple");
    expect_contains(message(index_bytes({2, 2}, {-4, 4}, {0, 1, 2})), "before the end");
    expect_contains(message(index_bytes({2, INT32_MAX}, {0, 4}, {0, 1, 2})), ".bin file has 8 bytes");
    expect_contains(message(index_bytes({2, 2}, {0, INT64_MAX - 1}, {0, 1, 2})), ".bin file has 8 bytes");
    expect_contains(message(index_bytes({2, 2}, {0, 4}, {0, 2, 1})), "expected 2 to 2");
    expect_contains(message(index_bytes({2, 2}, {0, 4}, {0, 1})), "end at sequence 1 of 2");
    expect_contains(message(index_bytes({2, 2}, {0, 4}, {1, 2})), "first document");
    expect_contains(message(index_bytes({2, 2}, {0, 4}, {0, 3})), "expected 0 to 2");
    expect_contains(message(index_bytes({2, 2}, {0, 4}, {})), "no document entries");
    expect_contains(message(index_bytes({1, 1}, {0, 4}, {0, 2})), "unused bytes inside");
    expect_contains(message(index_bytes({2, 2}, {0, 4}, {0, 1, 2}, 6)), "token type code 6");
    expect_contains(message(index_bytes({2, 2}, {0, 4}, {0, 1, 2}, 7)), "token type code 7");
    expect_contains(message(index_bytes({2, 2}, {0, 4}, {0, 1, 2}, 9)), "token type code is 9");
    expect_contains(message(index_bytes({2, 2}, {0, 4}, {0, 1, 2}, 8, 2)), "version 2");
    expect_contains(message(std::string("TNTIDX\0\0", 8) + std::string(60, 'x')), "legacy");
    expect_contains(message("MMIDIDX"), "truncated");
    expect_contains(message(std::string(40, 'x')), "MMIDIDX");
    // Counts whose product with their size overflows 64 bits.
    std::string huge = index_bytes({2, 2}, {0, 4}, {0, 1, 2});
    const std::string count = bytes_of<uint64_t>({uint64_t{1} << 62});
    expect_contains(message(std::string(huge).replace(18, 8, count)), "does not fit its size");
    expect_contains(message(std::string(huge).replace(26, 8, count)), "does not fit its size");
}

TEST(MegatronShard, MissingFilesSayWhatToDo) {
    const TemporaryFolder folder;
    expect_contains(input_error([&] { open_token_source(folder / "none"); }), "levin data build");
    folder.write("half.bin", "xx");
    expect_contains(input_error([&] { open_token_source(folder / "half"); }), "half.idx is missing");
    write_shard(folder / "x", kDocuments);
    std::filesystem::remove(folder / "x.bin");
    expect_contains(input_error([&] { open_token_source(folder / "x"); }), "x.bin");
}

// Every way to cut either file short, and thousands of changed bytes: a clear error or readable data.
TEST(MegatronShard, CorruptFilesNeverCrash) {
    const TemporaryFolder folder;
    Documents documents;
    for (int d = 0; d < 20; ++d) documents.emplace_back(static_cast<size_t>(d % 5), d);
    write_shard(folder / "x", documents);
    const std::string idx = read_text(folder / "x.idx"), bin = read_text(folder / "x.bin");
    int refused = 0, read = 0;
    const auto attempt = [&] {
        try {
            const auto source = open_token_source(folder / "x");
            verify_tokens(*source, INT32_MAX);
            documents_of(*source);
            ++read;
        } catch (const Error& error) {
            EXPECT_EQ(error.fault(), Fault::input);
            ++refused;
        }
    };
    for (size_t size = 0; size < idx.size(); ++size) {
        folder.write("x.idx", idx.substr(0, size));
        attempt();
    }
    EXPECT_EQ(read, 0);
    folder.write("x.idx", idx);
    for (size_t size = 0; size < bin.size(); ++size) {
        folder.write("x.bin", bin.substr(0, size));
        attempt();
    }
    EXPECT_EQ(read, 0);
    folder.write("x.bin", bin);
    std::mt19937 random(1);
    for (int i = 0; i < 3000; ++i) {
        std::string damaged = idx;
        damaged[random() % damaged.size()] = static_cast<char>(random());
        if (i % 3 == 0) damaged[random() % damaged.size()] ^= static_cast<char>(1 << random() % 8);
        folder.write("x.idx", damaged);
        attempt();
    }
    EXPECT_GT(refused, 2000);
}

TEST(MegatronShard, SidecarMustBelongToTheShard) {
    const TemporaryFolder folder;
    write_shard(folder / "x", kDocuments);
    ShardInfo info;
    info.vocab_size = 65536;
    info.tokenizer_kind = "byte";
    info.num_tokens = 9;
    info.num_documents = 5;
    folder.write("x.json", to_json(info));
    const auto source = open_token_source(folder / "x");
    ASSERT_TRUE(source->info().has_value());
    EXPECT_EQ(source->info()->vocab_size, 65536);
    EXPECT_EQ(source->info()->eos_id, -1);
    info.num_tokens = 10;
    folder.write("x.json", to_json(info));
    expect_contains(input_error([&] { open_token_source(folder / "x"); }), "do not belong together");
    const auto refused = [&](const std::string& json) {
        folder.write("x.json", json);
        input_error([&] { open_token_source(folder / "x"); });
    };
    refused("");
    refused("[1, 2]");
    refused("{\"format\": \"other\"}");
    info.num_tokens = 9;
    const std::string good = to_json(info);
    std::string text = good;
    refused(text.replace(text.find("65536"), 5, "18446744073709551615"));
    refused((text = good).replace(text.find("65536"), 5, "\"a\""));
    refused((text = good).replace(text.find("\"tokenizer_file\": \"\""), 20, "\"tokenizer_file\": \"../x\""));
}

TEST(MegatronShard, UncommittedWriterLeavesNothing) {
    const TemporaryFolder folder;
    {
        MegatronShardWriter writer(folder / "x", TokenType::u16);
        writer.append(std::vector<int32_t>{1, 2});
        writer.end_document();
    }
    EXPECT_TRUE(folder.files().empty());
}

TEST(MegatronShard, DiscardedDocumentIsForgotten) {
    const TemporaryFolder folder;
    MegatronShardWriter writer(folder / "x", TokenType::u16);
    writer.append(std::vector<int32_t>{1, 2});
    writer.end_document();
    writer.append(std::vector<int32_t>(3'000'000, 7));  // more than the writer's buffer
    writer.discard_document();
    writer.append(std::vector<int32_t>{3});
    writer.end_document();
    writer.commit();
    EXPECT_EQ(documents_of(*open_token_source(folder / "x")), (Documents{{1, 2}, {3}}));
}

}  // namespace
}  // namespace levin::test
