// Recurrent decoding: time and memory per token at several positions; both stay the same for lightning
// layers.
#include <fmt/format.h>

#include "kernels/device_memory.h"
#include "launch/commands/bench/bench.h"
#include "launch/commands/options.h"
#include "trainer/config.h"
#include "trainer/generation.h"

namespace levin::bench {

namespace {

struct Options {
    Common common;
    std::string config;
    std::vector<std::string> overrides;
    std::vector<int64_t> positions{100, 1000, 10000, 100000};
    int64_t tokens = 50;
};

void run(const Options& options) {
    const Device device = prepare(options.common);
    const Config config = load_config(options.config, options.overrides);
    LanguageModel model(config.model, parse_float_type(options.common.dtype), device);
    model.initialize(1);
    Table table({"position", "ms_per_token", "tokens_per_second", "memory_mib"});
    DecodeState state = model.new_state();
    const auto chunk = [&](int64_t length) {
        std::vector<int32_t> ids(static_cast<size_t>(length));
        for (size_t i = 0; i < ids.size(); ++i)
            ids[i] = static_cast<int32_t>((i * 7919 + 13) % static_cast<size_t>(config.model.vocab_size));
        return feed(model, state, ids);
    };
    for (const int64_t position : options.positions) {
        LEVIN_REQUIRE(position >= state.position, "bench", "--positions must ascend");
        while (state.position < position) chunk(std::min<int64_t>(2048, position - state.position));
        release_cached_memory(device);
        reset_peak_memory(device);
        const double seconds = median_seconds(
            kernels::default_stream(device), [&] { chunk(1); }, static_cast<int>(options.tokens), 0);
        table.add(
            {fmt::to_string(position), fmt::format("{:.4f}", seconds * 1e3),
             fmt::format("{:.1f}", 1 / seconds),
             fmt::format("{:.3f}", static_cast<double>(memory_statistics(device).peak_total) / (1 << 20))});
    }
    table.print(options.common.json);
}

}  // namespace

void add_decode(CLI::App& bench) {
    auto options = std::make_shared<Options>();
    CLI::App* command = bench.add_subcommand("decode", "Recurrent decoding at growing position");
    add_common(*command, options->common);
    command->add_option("CONFIG", options->config, "YAML file")->required();
    command->add_option("key=value", options->overrides, "Settings that replace those of the file");
    command->add_option("--positions", options->positions, "Positions to measure at, ascending")
        ->delimiter(',');
    command->add_option("--tokens", options->tokens, "Tokens per measurement")
        ->capture_default_str()
        ->check(CLI::PositiveNumber);
    command->callback([options] { run(*options); });
}

}  // namespace levin::bench
