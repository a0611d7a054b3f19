#include "data/document_reader.h"

#include <xxhash.h>

#include <algorithm>
#include <filesystem>

#include "data/text_reader.h"
#include "data/utf8.h"
#include "kernels/base/error.h"

namespace levin {

namespace {

constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
// A line longer than this is taken for a file that is no JSON lines at all, instead of being held in memory.
constexpr size_t kLongestLine = size_t{256} << 20;

bool ends_with(std::string_view text, std::string_view end) {
    return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

bool is_json_lines(const std::string& path, TextFormat format) {
    std::error_code ignored;
    LEVIN_REQUIRE(!std::filesystem::is_directory(path, ignored), path,
                  "is a folder, expected files; name those in it, such as {}",
                  (std::filesystem::path(path) / "*.jsonl").string());
    if (format != TextFormat::automatic) return format == TextFormat::jsonl;
    std::string_view name = path;
    for (const std::string_view compressed : {".gz", ".zst"}) {
        if (ends_with(name, compressed)) {
            name.remove_suffix(compressed.size());
            break;
        }
    }
    if (ends_with(name, ".jsonl") || ends_with(name, ".ndjson")) return true;
    LEVIN_REQUIRE(!ends_with(name, ".parquet"), path,
                  "Parquet is not read; write its texts as .jsonl first, one {{\"text\": ..}} a line");
    LEVIN_REQUIRE(
        ends_with(name, ".txt") || ends_with(name, ".text") || ends_with(name, ".md"), path,
        "its name does not tell what it holds; expected .txt or .jsonl (also with .gz or .zst), or say it "
        "with --format txt or --format jsonl");
    return false;
}

bool is_blank(std::string_view line) {
    return line.find_first_not_of(" \t\r\n\v\f") == std::string_view::npos;
}

// Where the first whole blank line at or behind `from` starts; npos: none.
size_t find_blank_line(std::string_view text, size_t from) {
    for (size_t line = from; line < text.size();) {
        const size_t newline = text.find('\n', line);
        if (newline == std::string_view::npos) break;
        if (is_blank(text.substr(line, newline - line))) return line;
        line = newline + 1;
    }
    return std::string_view::npos;
}

// `at`, or up to three bytes before it where that is inside a UTF-8 character.
size_t start_of_character(std::string_view text, size_t at) {
    size_t start = at;
    while (start > 1 && start + 3 > at && (static_cast<uint8_t>(text[start]) & 0xC0) == 0x80) --start;
    return start;
}

}  // namespace

struct DocumentReader::Members {
    CorpusOptions options;
    const Tokenizer* tokenizer;
    std::unique_ptr<TextReader> reader;
    size_t file = 0;
    bool is_json = false, at_start = true, ended = false;
    bool open_document = false, at_line_start = true;  // of the text given out so far
    int64_t line = 1;
    std::string rest;  // read, but not given out yet
    uint64_t total = 0, done = 0, file_bytes = 0;
    XXH3_state_t* hash = XXH3_createState();

    ~Members() { XXH3_freeState(hash); }

    void open() {
        const std::string& path = options.inputs[file];
        is_json = is_json_lines(path, options.format);
        reader = std::make_unique<TextReader>(path);
        at_start = true;
        ended = false;
        open_document = false;
        at_line_start = true;
        line = 1;
        file_bytes = 0;
        rest.clear();
    }

    // Reads until `rest` holds `size` bytes or the file ends.
    void fill(size_t size) {
        while (!ended && rest.size() < size) {
            const size_t before = rest.size();
            if (!reader->read(std::max(options.piece_bytes, size - rest.size()), rest)) {
                ended = true;
                XXH3_128bits_update(hash, &file_bytes, sizeof(file_bytes));
            }
            XXH3_128bits_update(hash, rest.data() + before, rest.size() - before);
            file_bytes += rest.size() - before;
            if (at_start && (rest.size() >= 3 || ended)) {
                at_start = false;
                const std::string_view head = std::string_view(rest).substr(0, 2);
                LEVIN_REQUIRE(head != "\xFF\xFE" && head != "\xFE\xFF", reader->path(),
                              "is in UTF-16; convert it with `iconv -f UTF-16 -t UTF-8`");
                if (std::string_view(rest).substr(0, 3) == kByteOrderMark) rest.erase(0, 3);
            }
        }
    }

    void add(Block& block, size_t begin, size_t size, bool ends_document) {
        block.pieces.push_back({begin, size, line, is_json, ends_document});
        const auto from = rest.begin() + static_cast<std::ptrdiff_t>(begin);
        line += std::count(from, from + static_cast<std::ptrdiff_t>(size), '\n');
        open_document = !ends_document;
        at_line_start = size > 0 && rest[begin + size - 1] == '\n';
    }

    // All whole lines at hand. Returns how much of `rest` they take.
    size_t cut_lines(Block& block) {
        fill(options.piece_bytes);
        size_t last = rest.rfind('\n');
        while (last == std::string::npos && !ended) {
            LEVIN_REQUIRE(rest.size() < kLongestLine, reader->path(),
                          "line {} is longer than {} MiB; is this a .jsonl file, one JSON object a line?",
                          line, kLongestLine >> 20);
            fill(2 * rest.size());
            last = rest.rfind('\n');
        }
        const size_t end = ended ? rest.size() : last + 1;
        for (size_t begin = 0; begin < end;) {
            const size_t next = std::min(rest.find('\n', begin), end - 1) + 1;
            if (is_blank(std::string_view(rest).substr(begin, next - begin))) {
                ++line;
            } else {
                add(block, begin, next - begin, true);
            }
            begin = next;
        }
        return end;
    }

    // The blank lines at the front of a text: they end the document that is open, and begin none.
    size_t skip_blank_lines(Block& block, size_t begin) {
        if (open_document) {
            block.pieces.push_back({begin, 0, line, false, true});
            open_document = false;
        }
        const size_t newline = rest.find('\n', begin);
        ++line;
        return newline == std::string::npos ? rest.size() : newline + 1;
    }

    // One piece of running text at rest[begin]: up to the document's end or to a good place for a cut.
    size_t cut_text(Block& block, size_t begin) {
        const std::string_view text = std::string_view(rest).substr(begin);
        const size_t limit = std::min(text.size(), options.piece_bytes);
        const std::string_view window = text.substr(0, limit);
        if (options.split == DocumentSplit::blank_lines) {
            const size_t from = at_line_start ? 0 : std::min(window.find('\n'), limit - 1) + 1;
            const size_t blank = find_blank_line(window, from);
            if (blank == 0) return skip_blank_lines(block, begin);
            if (blank != std::string_view::npos) {
                add(block, begin, blank, true);
                return begin + blank;
            }
        }
        if (ended && text.size() <= limit) {
            add(block, begin, text.size(), true);
            return rest.size();
        }
        TextCut cut = tokenizer != nullptr ? tokenizer->find_cut(window) : TextCut{};
        if (cut.left_end < limit / 2) {  // no good place near: at a line's end, else between two characters
            const size_t newline = window.rfind('\n');
            const bool at_line_end = newline != std::string_view::npos && newline >= limit / 2;
            cut.left_end = cut.right_begin = at_line_end ? newline + 1 : limit;
        }
        if (cut.left_end == limit) cut.left_end = cut.right_begin = start_of_character(text, limit);
        add(block, begin, cut.left_end, false);
        return begin + cut.right_begin;
    }

    size_t cut_texts(Block& block) {
        // One byte more than a piece tells whether the text goes on.
        fill(options.piece_bytes + 1);
        if (options.split == DocumentSplit::file) return rest.empty() ? 0 : cut_text(block, 0);
        size_t begin = 0;
        while (begin < rest.size() && (ended || rest.size() - begin > options.piece_bytes || begin == 0)) {
            begin = cut_text(block, begin);
        }
        return begin;
    }
};

DocumentReader::DocumentReader(const CorpusOptions& options, const Tokenizer* tokenizer)
    : members_(std::make_unique<Members>()) {
    members_->options = options;
    members_->tokenizer = tokenizer;
    LEVIN_REQUIRE(!options.inputs.empty(), "data", "no input files; name at least one .txt or .jsonl file");
    XXH3_128bits_reset(members_->hash);
    for (const std::string& path : options.inputs) {  // all of them, before hours of work on the first
        is_json_lines(path, options.format);
        members_->total += TextReader(path).size();
    }
}

DocumentReader::~DocumentReader() = default;

bool DocumentReader::next(Block& block) {
    Members& m = *members_;
    while (m.file < m.options.inputs.size()) {
        if (m.reader == nullptr) m.open();
        block.pieces.clear();
        block.file = m.file;
        const size_t used = m.is_json ? m.cut_lines(block) : m.cut_texts(block);
        block.text = m.rest.substr(0, used);
        m.rest.erase(0, used);
        if (m.ended && m.rest.empty()) {
            m.done += m.reader->size();
            m.reader.reset();
            ++m.file;
        }
        if (!block.pieces.empty()) return true;
    }
    return false;
}

uint64_t DocumentReader::bytes_read() const {
    return members_->done + (members_->reader != nullptr ? members_->reader->position() : 0);
}
uint64_t DocumentReader::total_bytes() const { return members_->total; }

std::string DocumentReader::hash() const {
    const XXH128_hash_t hash = XXH3_128bits_digest(members_->hash);
    return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

}  // namespace levin
