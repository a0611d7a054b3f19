// Shards of llm.c and datatrove, made by hand as their writers make them.
#include "data/token_source.h"
#include "tests/data/test_files.h"

namespace levin::test {
namespace {

std::string llmc_header(int32_t magic, int32_t version, int32_t tokens) {
    std::vector<int32_t> header(256, 0);
    header[0] = magic;
    header[1] = version;
    header[2] = tokens;
    return bytes_of(header);
}

TEST(LlmcShard, Gpt2AndLlama3) {
    const TemporaryFolder folder;
    folder.write("gpt2.bin", llmc_header(20240520, 1, 5) + bytes_of<uint16_t>({50256, 1, 2, 50256, 3}));
    const auto gpt2 = open_token_source(folder / "gpt2.bin");
    EXPECT_EQ(gpt2->type(), TokenType::u16);
    EXPECT_EQ(documents_of(*gpt2), (Documents{{50256, 1, 2}, {50256, 3}}));
    folder.write("llama.bin", llmc_header(20240801, 7, 3) + bytes_of<uint32_t>({128000, 7, 127999}));
    const auto llama = open_token_source(folder / "llama.bin");
    EXPECT_EQ(documents_of(*llama), (Documents{{128000, 7, 127999}}));
    std::vector<int32_t> tokens(2);
    llama->read(1, 2, 128256, tokens.data());
    EXPECT_EQ(tokens, (std::vector<int32_t>{7, 127999}));
    expect_contains(input_error([&] { llama->read(0, 2, 50257, tokens.data()); }), "128000");
    folder.write("empty.bin", llmc_header(20240520, 1, 0));
    EXPECT_EQ(open_token_source(folder / "empty.bin")->num_tokens(), 0);
}

TEST(LlmcShard, LyingFilesAreRefused) {
    const TemporaryFolder folder;
    const auto message = [&](const std::string& content) {
        folder.write("x.bin", content);
        return input_error([&] { open_token_source(folder / "x.bin"); });
    };
    const std::string tokens = bytes_of<uint16_t>({1, 2, 3});
    expect_contains(message(llmc_header(20240520, 1, 4) + tokens), "claims 4 tokens");
    expect_contains(message(llmc_header(20240520, 1, 3) + tokens + "x"), "claims 3 tokens");
    expect_contains(message(llmc_header(20240520, 1, -3) + tokens), "claims -3 tokens");
    expect_contains(message(llmc_header(20240520, 1, INT32_MAX) + tokens), "claims");
    expect_contains(message(llmc_header(20240520, 7, 3) + tokens), "version 7");
    expect_contains(message(llmc_header(1, 1, 3) + tokens), "magic 1");
    expect_contains(message("short"), "header");
    expect_contains(message(""), "header");
}

TEST(DatatroveShard, BothWidths) {
    const TemporaryFolder folder;
    folder.write("x.ds", bytes_of<uint16_t>({1, 2, 3, 4, 5}));
    folder.write("x.ds.index", bytes_of<uint64_t>({2, 2, 5}));
    folder.write("x.ds.metadata", "gpt2|2\n5\n5 tokens");
    for (const char* name : {"x", "x.ds"}) {
        const auto source = open_token_source(folder / name);
        EXPECT_EQ(source->type(), TokenType::u16);
        EXPECT_EQ(documents_of(*source), (Documents{{1, 2}, {}, {3, 4, 5}}));
    }
    folder.write("y.ds", bytes_of<uint32_t>({70000, 2, 3}));
    folder.write("y.ds.index", bytes_of<uint64_t>({1, 3}));
    EXPECT_EQ(documents_of(*open_token_source(folder / "y")), (Documents{{70000}, {2, 3}}));
}

TEST(DatatroveShard, LyingFilesAreRefused) {
    const TemporaryFolder folder;
    folder.write("x.ds", bytes_of<uint16_t>({1, 2, 3, 4}));
    const auto message = [&](const std::string& index) {
        folder.write("x.ds.index", index);
        return input_error([&] { open_token_source(folder / "x"); });
    };
    expect_contains(message(bytes_of<uint64_t>({3, 2, 4})), "document 1 ends at token 2");
    expect_contains(message(bytes_of<uint64_t>({5})), "ends at token 5");
    expect_contains(message(bytes_of<uint64_t>({UINT64_MAX})), "ends at token");
    expect_contains(message(bytes_of<uint64_t>({3})), "holds 8 bytes for the 3 tokens");
    expect_contains(message("1234567"), "multiple of 8");
    expect_contains(message(""), "holds 8 bytes for the 0 tokens");
    folder.write("x.ds.index", bytes_of<uint64_t>({4}));
    folder.write("x.ds.metadata", "llama|4\n4\n");
    expect_contains(input_error([&] { open_token_source(folder / "x"); }), "do not belong together");
    std::filesystem::remove(folder / "x.ds.index");
    expect_contains(input_error([&] { open_token_source(folder / "x"); }), "x.ds.index");
}

}  // namespace
}  // namespace levin::test
