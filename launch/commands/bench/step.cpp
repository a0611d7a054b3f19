// A whole training step (forward, backward, clipping, AdamW) of a configuration on random tokens.
#include <fmt/format.h>

#include <map>

#include "core/random.h"
#include "launch/commands/bench/bench.h"
#include "launch/commands/options.h"
#include "trainer/config.h"
#include "trainer/optimizer.h"
#include "trainer/throughput.h"

namespace levin::bench {

namespace {

struct Options {
    Common common;
    std::string config;
    std::vector<std::string> overrides;
    int repeats = 5;
    bool memory = false;
};

// What lives at the peak of one update, by category, op and size of the blocks.
void print_memory(const Device& device, bool json, const std::function<void()>& update) {
    reset_peak_memory(device);
    update();
    const size_t peak = memory_statistics(device).peak_total;
    watch_memory(device, peak);
    update();
    const auto gib = [](size_t bytes) {
        return fmt::format("{:.3f}", static_cast<double>(bytes) / (1 << 30));
    };
    Table table({"category", "op", "blocks", "block_mib", "gib", "share"});
    std::map<MemoryCategory, size_t> totals;
    for (const MemoryUse& use : watched_memory_uses(device)) {
        totals[use.category] += use.bytes();
        if (use.bytes() < peak / 1000) continue;
        table.add({to_string(use.category), std::string(use.op.op) + (use.op.backward ? " backward" : ""),
                   fmt::to_string(use.blocks),
                   fmt::format("{:.1f}", static_cast<double>(use.block_bytes) / (1 << 20)), gib(use.bytes()),
                   fmt::format("{:.3f}", static_cast<double>(use.bytes()) / static_cast<double>(peak))});
    }
    for (const auto& [category, bytes] : totals)
        table.add({to_string(category), "all", "", "", gib(bytes),
                   fmt::format("{:.3f}", static_cast<double>(bytes) / static_cast<double>(peak))});
    table.add({"peak", "all", "", "", gib(peak), "1.000"});
    table.print(json);
}

void run(const Options& options) {
    const Device device = prepare(options.common);
    const DType dtype = parse_float_type(options.common.dtype);
    const Config config = load_config(options.config, options.overrides);
    const DevicePeak peak = device_peak(device, dtype);
    LanguageModel model(config.model, dtype, device);
    model.initialize(1);
    model.set_recomputation(static_cast<Recomputation>(config.trainer.recompute));
    Optimizer optimizer(model, {});
    const int64_t batch = config.trainer.micro_batch, length = config.trainer.sequence_length,
                  tokens = batch * length;
    const Random random(1, "tokens");
    std::vector<int32_t> ids(static_cast<size_t>(tokens));
    for (size_t i = 0; i < ids.size(); ++i)
        ids[i] = static_cast<int32_t>(random.bits(i) % static_cast<uint64_t>(config.model.vocab_size));
    const Tensor input = Tensor::from({tokens}, ids, device), targets = input;

    const auto forward = [&] {
        return model.loss(input, targets, {.batch = batch, .length = length},
                          {.scale = 1.0 / static_cast<double>(tokens)});
    };
    reset_peak_memory(device);
    const double both = median_seconds(
        input.stream(), [&] { backward(forward().loss); }, options.repeats);
    const double update = median_seconds(
        input.stream(), [&] { optimizer.step(1e-4); }, options.repeats, 0.1);
    const double step = both + update;
    const double rate = static_cast<double>(tokens) / step * config.model.flops_per_token(length);
    Table table({"parameters", "batch", "length", "forward_backward_ms", "optimizer_ms", "step_ms",
                 "tokens_per_second", "gflops", "share_of_peak", "peak_gflops", "memory_gib"});
    table.add({fmt::to_string(config.model.parameter_count()), fmt::to_string(batch), fmt::to_string(length),
               fmt::format("{:.2f}", both * 1e3), fmt::format("{:.2f}", update * 1e3),
               fmt::format("{:.2f}", step * 1e3), fmt::format("{:.0f}", static_cast<double>(tokens) / step),
               fmt::format("{:.1f}", rate / 1e9), fmt::format("{:.3f}", rate / peak.flops_per_second),
               fmt::format("{:.1f}", peak.flops_per_second / 1e9),
               fmt::format("{:.3f}", static_cast<double>(memory_statistics(device).peak_total) / (1 << 30))});
    table.print(options.common.json);
    if (!options.common.json) fmt::print("peak: {}; one micro-batch an update\n", peak.source);
    if (options.memory)
        print_memory(device, options.common.json, [&] {
            backward(forward().loss);
            optimizer.step(1e-4);
        });
}

}  // namespace

void add_step(CLI::App& bench) {
    auto options = std::make_shared<Options>();
    CLI::App* command = bench.add_subcommand("step", "A training step of a configuration");
    add_common(*command, options->common);
    command->add_option("CONFIG", options->config, "YAML file")->required();
    command->add_option("key=value", options->overrides, "Settings that replace those of the file");
    command->add_option("--repeats", options->repeats)->capture_default_str()->check(CLI::PositiveNumber);
    command->add_flag("--memory", options->memory, "Also what lives at the peak, by op");
    command->callback([options] { run(*options); });
}

}  // namespace levin::bench
