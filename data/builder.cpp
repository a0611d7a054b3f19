#include "data/builder.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <thread>

#include "data/megatron_shard.h"
#include "data/ordered_pipeline.h"
#include "data/validation_split.h"
#include "kernels/base/error.h"
#include "kernels/base/file.h"

namespace levin {

namespace {

using Clock = std::chrono::steady_clock;

// The tokens of one block: pieces one after the other.
struct EncodedPiece {
    int64_t count = 0;  // tokens
    int64_t replaced = 0;
    bool ends_document = true, invalid = false, bad_line = false;
};
struct EncodedBlock {
    std::vector<int32_t> tokens;
    std::vector<EncodedPiece> pieces;
    uint64_t text_bytes = 0, bytes_read = 0;
};

EncodedBlock encode_block(const Block& block, const Tokenizer& tokenizer, const BuildOptions& options) {
    EncodedBlock out;
    out.pieces.reserve(block.pieces.size());
    PieceText text;
    for (const Piece& piece : block.pieces) {
        text_of(block, piece, options.corpus, text);
        const size_t before = out.tokens.size();
        tokenizer.encode(text.text, options.special_tokens, out.tokens);
        out.pieces.push_back({static_cast<int64_t>(out.tokens.size() - before), text.replaced,
                              piece.ends_document, text.invalid, text.bad_line});
        out.text_bytes += text.text.size();
    }
    return out;
}

// Puts encoded blocks into a shard, document by document.
class DocumentWriter {
public:
    DocumentWriter(MegatronShardWriter& shard, int32_t eos, BuildResult& result)
        : shard_(shard), eos_(eos), result_(result) {}

    void write(const EncodedBlock& block) {
        size_t at = 0;
        for (const EncodedPiece& piece : block.pieces) {
            const std::span<const int32_t> tokens(block.tokens.data() + at, static_cast<size_t>(piece.count));
            at += tokens.size();
            result_.replaced_utf8 += piece.replaced;
            result_.skipped_lines += piece.bad_line;
            drop_ = drop_ || piece.invalid;
            if (!drop_) {
                shard_.append(tokens);
                length_ += piece.count;
            }
            if (piece.ends_document) end_document(piece.bad_line);
        }
        result_.text_bytes += block.text_bytes;
    }

private:
    void end_document(bool bad_line) {
        if (drop_) {
            shard_.discard_document();
            ++result_.skipped_documents;
        } else if (length_ == 0) {
            if (!bad_line) ++result_.empty_documents;
        } else {
            if (eos_ >= 0) shard_.append({&eos_, 1});
            shard_.end_document();
        }
        length_ = 0;
        drop_ = false;
    }

    MegatronShardWriter& shard_;
    const int32_t eos_;
    BuildResult& result_;
    int64_t length_ = 0;  // tokens of the open document
    bool drop_ = false;
};

void check_options(const BuildOptions& options, const std::vector<std::string>& prefixes) {
    LEVIN_REQUIRE(!options.output.empty() && options.output.back() != '/', "data",
                  "the output \"{}\" is no PREFIX; give a path such as runs/data/corpus", options.output);
    LEVIN_REQUIRE(options.validation_fraction >= 0 && options.validation_fraction < 1, "data",
                  "the validation fraction is {}, expected 0 to less than 1, such as 0.01",
                  options.validation_fraction);
    LEVIN_REQUIRE(options.threads >= 0 && options.threads <= 1024, "data",
                  "{} threads, expected 0 (one per core) to 1024", options.threads);
    LEVIN_REQUIRE(options.corpus.piece_bytes >= 64, "data", "pieces of {} bytes, expected at least 64",
                  options.corpus.piece_bytes);
    for (const std::string& prefix : prefixes) {
        for (const char* extension : {".idx", ".bin", ".json"}) {
            const std::string path = prefix + extension;
            LEVIN_REQUIRE(options.overwrite || !std::filesystem::exists(path), path,
                          "exists already; give another --output, or --overwrite to replace it");
            for (const std::string& input : options.corpus.inputs) {
                std::error_code missing;
                LEVIN_REQUIRE(!std::filesystem::equivalent(input, path, missing), path,
                              "is an input and an output");
            }
        }
    }
    const auto folder = std::filesystem::path(options.output).parent_path();
    std::error_code error;
    if (!folder.empty()) std::filesystem::create_directories(folder, error);
    LEVIN_REQUIRE(!error, folder.string(), "cannot create the folder: {}", error.message());
}

ShardInfo describe(const Tokenizer& tokenizer, const std::string& prefix, const BuildOptions& options,
                   const std::string& hash, const MegatronShardWriter& shard) {
    ShardInfo info;
    info.vocab_size = tokenizer.vocab_size();
    info.tokenizer_kind = tokenizer.kind();
    if (!tokenizer.file_content().empty()) {
        info.tokenizer_file = std::filesystem::path(prefix).filename().string() + tokenizer.file_extension();
    }
    info.bos_id = tokenizer.bos_id();
    info.eos_id = tokenizer.eos_id();
    info.pad_id = tokenizer.pad_id();
    info.num_tokens = shard.num_tokens();
    info.num_documents = shard.num_documents();
    info.append_eos = options.append_eos;
    info.input_hash = hash;
    return info;
}

// Makes shard, description and tokenizer durable under temporary names, then names them.
void commit(MegatronShardWriter& shard, const std::string& prefix, const ShardInfo& info,
            const Tokenizer& tokenizer) {
    AtomicFile description(prefix + ".json");
    description.write(to_json(info));
    description.sync();
    std::unique_ptr<AtomicFile> copy;
    if (!info.tokenizer_file.empty()) {
        copy = std::make_unique<AtomicFile>(prefix + tokenizer.file_extension());
        copy->write(tokenizer.file_content());
        copy->sync();
    }
    shard.sync();
    shard.commit_tokens();
    if (copy != nullptr) copy->commit();
    description.commit();
    shard.commit_index();
}

}  // namespace

BuildResult build_shard(const BuildOptions& options) {
    const auto start = Clock::now();
    std::vector<std::string> prefixes{options.output};
    if (options.validation_fraction > 0) prefixes.push_back(options.output + "-validation");
    check_options(options, prefixes);
    const std::unique_ptr<Tokenizer> tokenizer = load_tokenizer(options.tokenizer);
    LEVIN_REQUIRE(
        !options.append_eos || tokenizer->eos_id() >= 0, options.tokenizer,
        "has no eos token to end documents with; name one in tokenizer_config.json (\"eos_token\"), or build "
        "with --no-append-eos");
    const TokenType type = tokenizer->vocab_size() <= 65536 ? TokenType::u16 : TokenType::i32;
    DocumentReader reader(options.corpus, tokenizer.get());
    auto shard = std::make_unique<MegatronShardWriter>(options.output, type);
    BuildResult result;
    DocumentWriter writer(*shard, options.append_eos ? tokenizer->eos_id() : -1, result);

    struct Item {
        Block block;
        uint64_t bytes_read = 0;
    };
    const int threads = options.threads > 0
                            ? options.threads
                            : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
    run_ordered<Item, EncodedBlock>(
        threads, 3 * static_cast<size_t>(threads) + 2,
        [&](Item& item) {
            if (!reader.next(item.block)) return false;
            item.bytes_read = reader.bytes_read();
            return true;
        },
        [&](Item&& item) {
            EncodedBlock encoded = encode_block(item.block, *tokenizer, options);
            encoded.bytes_read = item.bytes_read;
            return encoded;
        },
        [&](EncodedBlock&& block) {
            writer.write(block);
            if (options.progress) {
                options.progress({block.bytes_read, reader.total_bytes(), result.text_bytes,
                                  shard->num_tokens(), shard->num_documents()});
            }
        });
    LEVIN_REQUIRE(shard->num_tokens() > 0, "data",
                  "the corpus is empty: {} input file(s) hold no text ({} documents and {} lines skipped)",
                  options.corpus.inputs.size(), result.skipped_documents, result.skipped_lines);

    const std::string hash = reader.hash();
    std::unique_ptr<MegatronShardWriter> validation;
    if (options.validation_fraction > 0) {
        auto split =
            split_validation(std::move(shard), prefixes[0], prefixes[1], type, options.validation_fraction);
        shard = std::move(split.first);
        validation = std::move(split.second);
        result.validation_tokens = validation->num_tokens();
        result.validation_documents = validation->num_documents();
        validation->sync();
    }
    result.tokens = shard->num_tokens();
    result.documents = shard->num_documents();
    if (validation != nullptr) {
        commit(*validation, prefixes[1], describe(*tokenizer, prefixes[1], options, hash, *validation),
               *tokenizer);
    }
    commit(*shard, prefixes[0], describe(*tokenizer, prefixes[0], options, hash, *shard), *tokenizer);
    result.seconds = std::chrono::duration<double>(Clock::now() - start).count();
    return result;
}

}  // namespace levin
