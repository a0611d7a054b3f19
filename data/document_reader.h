// Cuts text files into pieces of documents, in order, holding only a block of text at a time.
//   .txt    one document per file, or one per paragraph (split at blank lines)
//   .jsonl  one document per line, in the JSON object's text key
// either plain or compressed (.gz, .zst). A leading byte order mark is dropped; line ends stay as they are.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "data/tokenizer.h"

namespace levin {

enum class TextFormat { automatic, txt, jsonl };  // automatic: by the file's name
enum class DocumentSplit { file, blank_lines };
enum class InvalidUtf8 { replace, skip, fail };
enum class BadLines { fail, skip };

struct CorpusOptions {
    std::vector<std::string> inputs;
    TextFormat format = TextFormat::automatic;
    DocumentSplit split = DocumentSplit::file;
    std::string text_key = "text";
    InvalidUtf8 invalid_utf8 = InvalidUtf8::replace;  // skip: drop the document; fail: stop
    BadLines bad_lines = BadLines::fail;
    size_t piece_bytes = size_t{256} << 10;  // a longer document is encoded in pieces of about this size
};

// A line of JSON, or a run of text that ends where a document ends or where the tokenizer says it may be cut.
struct Piece {
    size_t offset = 0, size = 0;  // in Block::text
    int64_t line = 0;             // first line, from 1
    bool is_json = false;
    bool ends_document = true;
};
struct Block {
    std::string text;
    std::vector<Piece> pieces;
    size_t file = 0;  // index into CorpusOptions::inputs
};

// Produces the blocks of a corpus one after the other. Throws Error(input) for a file that is missing,
// damaged, of unknown format, in UTF-16, or that has a line too long to be a document.
class DocumentReader {
public:
    // `tokenizer` says where a long text may be cut; nullptr cuts at line ends. It must outlive the reader.
    DocumentReader(const CorpusOptions& options, const Tokenizer* tokenizer);
    ~DocumentReader();

    // False after the last block.
    bool next(Block& block);

    uint64_t bytes_read() const;  // of the files as they lie on the disk
    uint64_t total_bytes() const;
    // XXH3, 128 bits, over the decompressed bytes and lengths of the files read so far, as 32 hexadecimal
    // digits.
    std::string hash() const;

private:
    struct Members;
    std::unique_ptr<Members> members_;
};

// What became of one piece. Not to be copied or moved: `text` may point into `storage`.
struct PieceText {
    std::string_view text;  // valid UTF-8; in `storage` or in the block
    std::string storage;
    int64_t replaced = 0;   // invalid sequences replaced by U+FFFD
    bool invalid = false;   // invalid UTF-8 under InvalidUtf8::skip: the document is to be dropped
    bool bad_line = false;  // no JSON object with the text key, under BadLines::skip
};
// Parses and cleans a piece as the options say. Throws Error(input) naming file and line.
void text_of(const Block& block, const Piece& piece, const CorpusOptions& options, PieceText& out);

}  // namespace levin
