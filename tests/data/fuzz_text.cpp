// Text files as the builder reads them: plain, gzip or zstd, as text or as lines of JSON, cut into small
// pieces. What is given out must be valid UTF-8.
#include <zlib.h>
#include <zstd.h>

#include <cstdlib>

#include "data/document_reader.h"
#include "data/utf8.h"
#include "tests/data/fuzz.h"
#include "tests/data/test_files.h"

namespace levin::test {

std::vector<std::string> fuzz_seeds() {
    const TemporaryFolder folder;
    const std::string text =
        "{\"text\": \"first \\u00e9\", \"id\": [1, {\"a\": null}]}\n\n{\"text\": \"sec\xC3\xA9nd\"}\r\n";
    gzFile file = gzopen((folder / "x").c_str(), "wb");
    gzwrite(file, text.data(), static_cast<unsigned>(text.size()));
    gzclose(file);
    std::string zstd(ZSTD_compressBound(text.size()), '\0');
    zstd.resize(ZSTD_compress(zstd.data(), zstd.size(), text.data(), text.size(), 1));
    const std::string long_text(300, 'x');
    std::vector<std::string> seeds;
    for (const char flags : {0, 1, 2, 3, 7}) {
        for (const std::string& content :
             {text, read_text(folder / "x"), zstd, long_text + "\n \n\nb\n" + long_text}) {
            seeds.push_back(std::string(1, flags) + content);
        }
    }
    return seeds;
}

}  // namespace levin::test

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    using namespace levin;
    using namespace levin::test;
    if (size < 1) return 0;
    static const TemporaryFolder folder;
    CorpusOptions options;
    options.inputs = {folder.write("x.txt", {reinterpret_cast<const char*>(data) + 1, size - 1})};
    options.format = data[0] & 1 ? TextFormat::jsonl : TextFormat::txt;
    options.split = data[0] & 2 ? DocumentSplit::blank_lines : DocumentSplit::file;
    options.bad_lines = data[0] & 4 ? BadLines::fail : BadLines::skip;
    options.piece_bytes = 64;
    expect_answer([&] {
        static const auto tokenizer = make_byte_tokenizer();
        DocumentReader reader(options, data[0] & 8 ? tokenizer.get() : nullptr);
        Block block;
        PieceText text;
        while (reader.next(block)) {
            for (const Piece& piece : block.pieces) {
                text_of(block, piece, options, text);
                if (valid_utf8_prefix(text.text) != text.text.size()) std::abort();
            }
        }
    });
    return 0;
}
