// Token shards of all three formats. The first byte says which; the rest is the index and the tokens, one
// after the other: the index has the length that the second and third byte give.
#include "data/token_source.h"
#include "tests/data/fuzz.h"
#include "tests/data/test_files.h"

namespace levin::test {

namespace {

std::string input_of(char format, const std::string& index, const std::string& tokens) {
    return std::string{format, static_cast<char>(index.size() & 0xFF), static_cast<char>(index.size() >> 8)} +
           index + tokens;
}

}  // namespace

std::vector<std::string> fuzz_seeds() {
    const TemporaryFolder folder;
    write_shard(folder / "x", {{1, 2, 3}, {}, {4}, {5, 6}});
    std::vector<int32_t> header(256, 0);
    header[0] = 20240520;
    header[1] = 1;
    header[2] = 4;
    const std::string tokens = bytes_of<uint16_t>({50256, 2, 3, 50256});
    ShardInfo info;
    info.vocab_size = 257;
    info.tokenizer_kind = "byte";
    info.num_tokens = 6;
    return {input_of(0, read_text(folder / "x.idx"), read_text(folder / "x.bin")),
            input_of(1, "", bytes_of(header) + tokens), input_of(2, bytes_of<uint64_t>({1, 1, 4}), tokens),
            input_of(3, to_json(info), "")};
}

}  // namespace levin::test

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    using namespace levin;
    using namespace levin::test;
    if (size < 3) return 0;
    static const TemporaryFolder folder;
    const std::string rest(reinterpret_cast<const char*>(data) + 3, size - 3);
    const size_t length = std::min<size_t>(rest.size(), data[1] | data[2] << 8);
    const std::string index = rest.substr(0, length), tokens = rest.substr(length);
    const auto read_all = [](const std::string& path) {
        expect_answer([&] {
            const auto source = open_token_source(path);
            documents_of(*source);
            std::vector<int64_t> starts;
            source->append_document_starts(0, source->num_tokens(), starts);
            verify_tokens(*source, 60000);
        });
    };
    switch (data[0] % 4) {
        case 0:
            folder.write("m.idx", index);
            folder.write("m.bin", tokens);
            read_all(folder / "m");
            break;
        case 1:
            read_all(folder.write("l.bin", tokens));
            break;
        case 2:
            folder.write("d.ds.index", index);
            read_all(folder.write("d.ds", tokens));
            break;
        case 3:
            folder.write("i.json", index);
            expect_answer([&] { read_shard_info(folder / "i"); });
            break;
    }
    return 0;
}
