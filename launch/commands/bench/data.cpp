// The data path: tokenizing text into a shard, and reading shuffled samples back.
#include <fmt/format.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "core/random.h"
#include "data/builder.h"
#include "data/loader.h"
#include "launch/commands/bench/bench.h"
#include "launch/commands/values.h"

namespace levin::bench {

namespace {

namespace fs = std::filesystem;

struct Options {
    Common common;
    std::string input, tokenizer = "byte";
    int64_t length = 1024, mebibytes = 32;
};

// A folder of our own that goes when the measurement ends.
class Scratch {
public:
    Scratch() {
        std::string name = (fs::temp_directory_path() / "levin-bench-XXXXXX").string();
        LEVIN_REQUIRE(mkdtemp(name.data()), "bench", "cannot make a folder in {}",
                      fs::temp_directory_path().string());
        path_ = name;
    }
    ~Scratch() {
        std::error_code ignored;
        fs::remove_all(path_, ignored);
    }
    fs::path path() const { return path_; }

private:
    fs::path path_;
};

// Words of random letters: no text, but it costs the tokenizer what text costs.
void write_text(const fs::path& path, int64_t bytes) {
    std::ofstream out(path, std::ios::binary);
    const Random random(1, "text");
    std::string line;
    for (uint64_t i = 0; bytes > 0; ++i) {
        const uint64_t bits = random.bits(i);
        for (uint64_t letter = 0; letter < 2 + bits % 7; ++letter)
            line += static_cast<char>('a' + (bits >> (8 + 5 * letter)) % 26);
        line += bits % 11 == 0 ? '\n' : ' ';
        if (line.size() < 65536) continue;
        out << line;
        bytes -= static_cast<int64_t>(line.size());
        line.clear();
    }
}

void run(const Options& options) {
    prepare(options.common);
    const Scratch scratch;
    std::string input = options.input;
    if (input.empty()) {
        input = (scratch.path() / "text.txt").string();
        write_text(input, options.mebibytes << 20);
    }
    const std::string prefix = (scratch.path() / "shard").string();
    BuildOptions build;
    build.corpus.inputs = {input};
    build.tokenizer = options.tokenizer;
    build.output = prefix;
    build.threads = static_cast<int>(options.common.threads);
    const BuildResult built = build_shard(build);

    const auto dataset = std::make_shared<Dataset>(std::vector<std::string>{prefix});
    const Loader loader(dataset, {.length = options.length, .vocab_size = 1 << 30, .seed = 1});
    const auto start = std::chrono::steady_clock::now();
    int64_t samples = 0;
    double seconds = 0;
    while (seconds < 1) {
        samples += loader.batch(samples, 8).count;
        seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    }
    Table table({"tokenizer", "text_mb", "tokens", "build_mb_per_second", "length", "samples_per_second",
                 "read_mtokens_per_second"});
    const double megabytes = static_cast<double>(built.text_bytes) / 1e6;
    const double rate = static_cast<double>(samples) / seconds;
    table.add({fs::path(options.tokenizer).filename().string(), fmt::format("{:.1f}", megabytes),
               fmt::to_string(built.tokens), fmt::format("{:.1f}", megabytes / built.seconds),
               fmt::to_string(options.length), fmt::format("{:.0f}", rate),
               fmt::format("{:.1f}", rate * static_cast<double>(options.length) / 1e6)});
    table.print(options.common.json);
}

}  // namespace

void add_data(CLI::App& bench) {
    auto options = std::make_shared<Options>();
    CLI::App* command = bench.add_subcommand("data", "Building a shard and reading samples");
    command->footer("Example: levin bench data --input my.txt --tokenizer my.model");
    add_common(*command, options->common);
    command->add_option("--input", options->input, "Text to tokenize (default: random words)");
    command->add_option("--tokenizer", options->tokenizer, "byte or PATH")->capture_default_str();
    command->add_option("--sequence-length", options->length)->capture_default_str()->check(positive());
    command->add_option("--mebibytes", options->mebibytes, "Size of the random text")
        ->capture_default_str()
        ->check(positive());
    command->callback([options] { run(*options); });
}

}  // namespace levin::bench
