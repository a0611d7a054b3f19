// levin data build | inspect | verify
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>

#include "data/builder.h"
#include "data/token_source.h"
#include "data/utf8.h"
#include "kernels/base/error.h"
#include "launch/commands/commands.h"
#include "launch/commands/values.h"

namespace levin {

namespace {

using Clock = std::chrono::steady_clock;

// One line that is rewritten on a terminal; elsewhere a line every ten seconds.
class ProgressLine {
public:
    void operator()(const BuildProgress& progress) {
        const auto now = Clock::now();
        const std::chrono::duration<double> since = now - last_, all = now - start_;
        if (since.count() < (terminal_ ? 0.2 : 10.0)) return;
        last_ = now;
        const double share = progress.total_bytes > 0 ? static_cast<double>(progress.bytes_read) /
                                                            static_cast<double>(progress.total_bytes)
                                                      : 1;
        const double rate = static_cast<double>(progress.text_bytes) / 1e6 / all.count();
        const double left = share > 0 ? all.count() * (1 - share) / share : 0;
        fmt::print(stderr, "{}{:5.1f} %  {} documents, {} tokens, {:.1f} MB/s, {:.0f} s left{}",
                   terminal_ ? "\r" : "", 100 * share, progress.documents, progress.tokens, rate, left,
                   terminal_ ? "\x1b[K" : "\n");
        std::fflush(stderr);
        shown_ = true;
    }
    void end() {
        if (terminal_ && shown_) fmt::print(stderr, "\r\x1b[K");
    }

private:
    const bool terminal_ = ::isatty(STDERR_FILENO) != 0;
    const Clock::time_point start_ = Clock::now();
    Clock::time_point last_ = start_;
    bool shown_ = false;
};

void print_result(const BuildResult& result, const BuildOptions& options) {
    fmt::print("{}.bin: {} tokens in {} documents\n", options.output, result.tokens, result.documents);
    if (result.validation_tokens > 0) {
        fmt::print("{}-validation.bin: {} tokens in {} documents\n", options.output, result.validation_tokens,
                   result.validation_documents);
    }
    fmt::print("{:.2f} MB of text in {:.2f} s, {:.1f} MB/s\n", static_cast<double>(result.text_bytes) / 1e6,
               result.seconds, static_cast<double>(result.text_bytes) / 1e6 / std::max(result.seconds, 1e-9));
    const auto note = [](int64_t count, const char* what) {
        if (count > 0) fmt::print("{} {}\n", count, what);
    };
    note(result.replaced_utf8, "invalid UTF-8 sequences replaced by U+FFFD");
    note(result.skipped_documents, "documents with invalid UTF-8 left out");
    note(result.skipped_lines, "bad lines left out");
    note(result.empty_documents, "empty documents left out");
}

void add_build(CLI::App& data) {
    auto options = std::make_shared<BuildOptions>();
    CorpusOptions& corpus = options->corpus;
    CLI::App* app = data.add_subcommand("build", "Make a token shard from text files");
    app->footer(
        "Text must be UTF-8. Invalid bytes become U+FFFD and are counted (--invalid-utf8 replace); or the "
        "document is\n"
        "left out (skip), or the build stops at the line (fail). A leading byte order mark is dropped, line "
        "ends are\n"
        "kept. A .txt file is one document, a line of .jsonl is one document; .gz and .zst files are read as "
        "they are.\n"
        "Writes PREFIX.bin and PREFIX.idx (Megatron format), PREFIX.json and a copy of the tokenizer.\n\n"
        "Example: levin data build --input books/*.txt web.jsonl.zst --tokenizer byte --output "
        "runs/data/corpus");
    app->add_option("--input", corpus.inputs, "Text files: .txt or .jsonl, also .gz or .zst")->required();
    app->add_option(
           "--tokenizer", options->tokenizer,
           "byte, a SentencePiece .model, a Hugging Face tokenizer.json, or a folder with one of them")
        ->required();
    app->add_option("--output", options->output, "PREFIX of the files to write")->required();
    app->add_option("--text-key", corpus.text_key, "Key of the text in a line of .jsonl")
        ->capture_default_str();
    app->add_option("--format", corpus.format, "What the input files hold; auto: as their names say")
        ->transform(one_of<TextFormat>(
            {{"auto", TextFormat::automatic}, {"txt", TextFormat::txt}, {"jsonl", TextFormat::jsonl}}));
    app->add_option("--split-documents", corpus.split,
                    "How a .txt file is divided: file (not at all) or blank-lines")
        ->transform(one_of<DocumentSplit>(
            {{"file", DocumentSplit::file}, {"blank-lines", DocumentSplit::blank_lines}}));
    app->add_option("--invalid-utf8", corpus.invalid_utf8, "replace (default), skip the document, or fail")
        ->transform(one_of<InvalidUtf8>(
            {{"replace", InvalidUtf8::replace}, {"skip", InvalidUtf8::skip}, {"fail", InvalidUtf8::fail}}));
    app->add_option("--bad-lines", corpus.bad_lines,
                    "A line that is no JSON object with the key: fail (default) or skip")
        ->transform(one_of<BadLines>({{"fail", BadLines::fail}, {"skip", BadLines::skip}}));
    app->add_flag("--append-eos,!--no-append-eos", options->append_eos,
                  "End every document with the tokenizer's eos token (default)");
    app->add_option("--special-tokens", options->special_tokens,
                    "Text that spells a special token: text (default) or parse, make it that token")
        ->transform(one_of<SpecialTokens>({{"text", SpecialTokens::text}, {"parse", SpecialTokens::parse}}));
    app->add_option("--validation-fraction", options->validation_fraction,
                    "Share of the tokens to set aside in PREFIX-validation, such as 0.01")
        ->capture_default_str();
    app->add_option("--threads", options->threads, "Threads that tokenize; 0: one per core")
        ->capture_default_str();
    app->add_flag("--overwrite", options->overwrite, "Replace the output if it exists");
    app->callback([options] {
        auto line = std::make_shared<ProgressLine>();
        options->progress = [line](const BuildProgress& progress) { (*line)(progress); };
        const BuildResult result = build_shard(*options);
        line->end();
        print_result(result, *options);
    });
}

std::string without_extension(const std::string& path) {
    const std::string extension = std::filesystem::path(path).extension().string();
    const bool known = extension == ".bin" || extension == ".idx" || extension == ".json";
    return known ? path.substr(0, path.size() - extension.size()) : path;
}

// A text on one line of a terminal.
std::string one_line(const std::string& bytes) {
    int64_t replaced = 0;
    std::string out;
    for (const char c : replace_invalid_utf8(bytes, replaced)) {
        const auto byte = static_cast<unsigned char>(c);
        if (c == '\n') {
            out += "\\n";
        } else if (byte < 0x20 || byte == 0x7F) {
            out += fmt::format("\\x{:02x}", byte);
        } else {
            out += c;
        }
    }
    return out;
}

void inspect(const std::string& prefix, int64_t show, int64_t show_tokens,
             const std::string& tokenizer_path) {
    const auto source = open_token_source(prefix);
    const int64_t documents = source->num_documents(), tokens = source->num_tokens();
    fmt::print("{}\n", source->name());
    fmt::print("tokens     {} ({}, {:.2f} MB)\n", tokens, to_string(source->type()),
               static_cast<double>(tokens * width_of(source->type())) / 1e6);
    fmt::print("documents  {}, {:.1f} tokens on average\n", documents,
               documents > 0 ? static_cast<double>(tokens) / static_cast<double>(documents) : 0.0);
    std::unique_ptr<Tokenizer> tokenizer;
    if (const auto& info = source->info()) {
        fmt::print("tokenizer  {}, {} tokens, bos {}, eos {}, pad {}\n", info->tokenizer_kind,
                   info->vocab_size, info->bos_id, info->eos_id, info->pad_id);
        fmt::print("inputs     XXH3 {}\n", info->input_hash);
        if (tokenizer_path.empty()) tokenizer = load_tokenizer_of_shard(without_extension(prefix));
    }
    if (!tokenizer_path.empty()) tokenizer = load_tokenizer(tokenizer_path);
    for (int64_t d = 0; d < std::min(show, documents); ++d) {
        const TokenSpan span = source->document(d);
        const int64_t n = std::min(show_tokens, span.count);
        std::vector<int32_t> ids(static_cast<size_t>(n));
        if (tokenizer) source->read(source->document_begin(d), n, tokenizer->vocab_size(), ids.data());
        std::string text;
        for (int64_t i = 0; i < n && !tokenizer; ++i) text += fmt::format("{}{}", i > 0 ? " " : "", span[i]);
        fmt::print("document {} ({} tokens): {}{}\n", d, span.count,
                   tokenizer ? one_line(tokenizer->decode(ids)) : text, n < span.count ? " .." : "");
    }
}

void add_inspect(CLI::App& data) {
    struct Options {
        std::string prefix, tokenizer;
        int64_t documents = 3, tokens = 64;
    };
    auto options = std::make_shared<Options>();
    CLI::App* app = data.add_subcommand("inspect", "Print what a token shard holds");
    app->footer(
        "Reads shards of levin and Megatron (PREFIX), llm.c (NAME.bin) and datatrove (NAME.ds).\n\n"
        "Example: levin data inspect runs/data/corpus");
    app->add_option("PREFIX", options->prefix, "The shard")->required();
    app->add_option("--documents", options->documents, "Documents to print")
        ->check(not_negative())
        ->capture_default_str();
    app->add_option("--tokens", options->tokens, "Tokens to print of each")
        ->check(not_negative())
        ->capture_default_str();
    app->add_option("--tokenizer", options->tokenizer,
                    "Tokenizer to decode with, for a shard that has none beside it");
    app->callback(
        [options] { inspect(options->prefix, options->documents, options->tokens, options->tokenizer); });
}

void add_verify(CLI::App& data) {
    struct Options {
        std::string prefix;
        int64_t vocab_size = 0;
    };
    auto options = std::make_shared<Options>();
    CLI::App* app = data.add_subcommand("verify", "Check a token shard: its index, its sizes, every token");
    app->footer(
        "Exit status 0 when all is well, 2 with the first fault otherwise.\n\n"
        "Example: levin data verify runs/data/corpus");
    app->add_option("PREFIX", options->prefix, "The shard")->required();
    app->add_option("--vocab-size", options->vocab_size,
                    "Tokens must be below this; default: what PREFIX.json says")
        ->check(CLI::Range(int64_t{0}, int64_t{INT32_MAX}));
    app->callback([options] {
        const auto source = open_token_source(options->prefix);
        const auto& info = source->info();
        if (info) load_tokenizer_of_shard(without_extension(options->prefix));
        const int64_t vocab = options->vocab_size > 0 ? options->vocab_size
                              : info                  ? info->vocab_size
                                                      : INT32_MAX;
        verify_tokens(*source, vocab);
        fmt::print("{}: good, {} documents, {} tokens, {}\n", source->name(), source->num_documents(),
                   source->num_tokens(),
                   vocab < INT32_MAX ? fmt::format("all below {}", vocab)
                                     : "vocabulary not known (give --vocab-size to check the tokens)");
    });
}

}  // namespace

void add_data_command(CLI::App& app) {
    CLI::App* data = app.add_subcommand("data", "Make and check token shards");
    data->require_subcommand(1);
    add_build(*data);
    add_inspect(*data);
    add_verify(*data);
}

}  // namespace levin
