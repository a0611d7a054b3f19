// levin tokenizer train | encode | decode
#include "data/tokenizer.h"

#include <cstdio>
#include <iostream>
#include <iterator>
#include <map>
#include <memory>

#include "data/tokenizer_trainer.h"
#include "kernels/base/error.h"
#include "kernels/base/file.h"
#include "launch/commands/commands.h"
#include "launch/commands/values.h"

namespace levin {

namespace {

std::string read_standard_input() {
    return {std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>()};
}

void add_train(CLI::App& tokenizer) {
    struct Options {
        TokenizerTrainOptions train;
        std::string output;
        bool overwrite = false;
    };
    auto options = std::make_shared<Options>();
    TokenizerTrainOptions& train = options->train;
    CLI::App* app = tokenizer.add_subcommand("train", "Train a SentencePiece tokenizer on text files");
    app->footer(
        "Writes NAME.model. Text is not normalised: decoding gives back what was encoded,\n"
        "but for U+2581, which is SentencePiece's own mark for a space and comes back as one.\n\n"
        "Example: levin tokenizer train --input books/*.txt --vocab-size 8000 --output runs/data/books");
    app->add_option("--input", train.corpus.inputs, "Text files: .txt or .jsonl, also .gz or .zst")
        ->required();
    app->add_option("--vocab-size", train.vocab_size, "Tokens of the vocabulary")->required();
    app->add_option("--output", options->output, "NAME: writes NAME.model")->required();
    app->add_option("--type", train.model_type, "bpe or unigram")->capture_default_str();
    app->add_flag("--byte-fallback,!--no-byte-fallback", train.byte_fallback,
                  "Write characters outside the vocabulary as bytes (default)");
    app->add_option("--text-key", train.corpus.text_key, "Key of the text in a line of .jsonl")
        ->capture_default_str();
    app->add_option("--format", train.corpus.format, "What the input files hold; auto: as their names say")
        ->transform(one_of<TextFormat>(
            {{"auto", TextFormat::automatic}, {"txt", TextFormat::txt}, {"jsonl", TextFormat::jsonl}}));
    app->add_option("--max-sentences", train.max_sentences, "Lines to train on, drawn from all")
        ->capture_default_str();
    app->add_option("--threads", train.threads, "0: one per core")->capture_default_str();
    app->add_flag("--overwrite", options->overwrite, "Replace NAME.model if it exists");
    app->callback([options] {
        const std::string path = options->output + (options->output.ends_with(".model") ? "" : ".model");
        LEVIN_REQUIRE(options->overwrite || !CLI::ExistingFile(path).empty(), path,
                      "exists already; give another --output, or --overwrite to replace it");
        write_text_file(path, train_sentencepiece(options->train));
        const auto made = load_tokenizer(path);
        fmt::print("{}: {} tokens, bos {}, eos {}\n", path, made->vocab_size(), made->bos_id(),
                   made->eos_id());
    });
}

void add_encode(CLI::App& tokenizer) {
    struct Options {
        std::string tokenizer, text;
        bool names = false;
        SpecialTokens special = SpecialTokens::parse;
    };
    auto options = std::make_shared<Options>();
    CLI::App* app = tokenizer.add_subcommand("encode", "Print the token ids of a text");
    app->footer(
        "Example: levin tokenizer encode --tokenizer runs/data/books.model --text \"Once upon a time\"");
    app->add_option("--tokenizer", options->tokenizer, "byte, a .model, a tokenizer.json, or a folder")
        ->required();
    CLI::Option* text = app->add_option("--text", options->text, "The text; default: standard input");
    app->add_flag("--names", options->names, "Print each token's name beside its id, one a line");
    app->add_option("--special-tokens", options->special,
                    "Text that spells a special token: parse (default) or text")
        ->transform(one_of<SpecialTokens>({{"text", SpecialTokens::text}, {"parse", SpecialTokens::parse}}));
    app->callback([options, text] {
        const auto loaded = load_tokenizer(options->tokenizer);
        const std::string input = text->count() > 0 ? options->text : read_standard_input();
        const std::vector<int32_t> ids = loaded->encode(input, options->special);
        for (size_t i = 0; i < ids.size(); ++i) {
            if (options->names) {
                fmt::print("{}\t{}\n", ids[i], loaded->token_name(ids[i]));
            } else {
                fmt::print("{}{}", i > 0 ? " " : "", ids[i]);
            }
        }
        if (!options->names) fmt::print("\n");
    });
}

void add_decode(CLI::App& tokenizer) {
    struct Options {
        std::string tokenizer;
        std::vector<int32_t> ids;
    };
    auto options = std::make_shared<Options>();
    CLI::App* app = tokenizer.add_subcommand("decode", "Print the text of token ids");
    app->footer("Example: levin tokenizer decode --tokenizer byte 72 101 108 108 111");
    app->add_option("--tokenizer", options->tokenizer, "byte, a .model, a tokenizer.json, or a folder")
        ->required();
    app->add_option("IDS", options->ids, "Token ids; default: from standard input");
    app->callback([options] {
        const auto loaded = load_tokenizer(options->tokenizer);
        if (options->ids.empty()) {
            for (int32_t id; std::cin >> id;) options->ids.push_back(id);
            LEVIN_REQUIRE(std::cin.eof(), "standard input",
                          "holds something that is no token id after {} ids", options->ids.size());
        }
        fmt::print("{}\n", loaded->decode(options->ids));
    });
}

}  // namespace

void add_tokenizer_command(CLI::App& app) {
    CLI::App* tokenizer = app.add_subcommand("tokenizer", "Train and try tokenizers");
    tokenizer->require_subcommand(1);
    add_train(*tokenizer);
    add_encode(*tokenizer);
    add_decode(*tokenizer);
}

}  // namespace levin
