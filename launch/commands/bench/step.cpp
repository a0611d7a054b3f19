// A whole training update (forward and backward of one or several micro-batches, clipping, AdamW) of a
// configuration on random tokens, by turns with its matrix products alone.
#include <fmt/format.h>

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <optional>

#include "core/random.h"
#include "kernels/device_memory.h"
#include "launch/commands/bench/bench.h"
#include "launch/commands/bench/step_products.h"
#include "launch/commands/bench/step_profile.h"
#include "launch/commands/bench/turns.h"
#include "launch/commands/options.h"
#include "launch/commands/values.h"
#include "trainer/config.h"
#include "trainer/optimizer.h"
#include "trainer/passes.h"
#include "trainer/step_graph.h"
#include "trainer/throughput.h"

namespace levin::bench {

namespace {

struct Options {
    Common common;
    std::string config;
    std::vector<std::string> overrides;
    int repeats = 5;
    int64_t accumulate = 1;
    bool memory = false, profile = false, no_bound = false, compare_graph = false;
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

// Model, optimizer and random micro-batches of a configuration.
class Bench {
public:
    Bench(const Config& config, DType dtype, const Device& device, int64_t accumulate)
        : device_(device),
          batch_(config.trainer.micro_batch),
          length_(config.trainer.sequence_length),
          loss_chunk_(config.trainer.loss_chunk_tokens),
          model_(initialized(config, dtype, device)),
          optimizer_(*model_, {.bf16_moments = config.optimizer.moment_dtype == StoredType::bf16}) {
        form_in_bf16(*model_, formed_in_bf16(*model_, config, accumulate, false));
        for (int64_t i = 0; i < accumulate; ++i) {
            const Random random(static_cast<uint64_t>(i + 1), "tokens");
            std::vector<int32_t> ids(static_cast<size_t>(tokens()));
            for (size_t j = 0; j < ids.size(); ++j)
                ids[j] =
                    static_cast<int32_t>(random.bits(j) % static_cast<uint64_t>(config.model.vocab_size));
            const Tensor tensor = Tensor::from({tokens()}, ids, device);
            micro_batches_.push_back({.ids = tensor,
                                      .targets = tensor,
                                      .layout = {.batch = batch_, .length = length_},
                                      .counted = tokens()});
        }
    }

    int64_t tokens() const { return batch_ * length_; }  // of a micro-batch
    // From now on passes are launched one kernel after the other, or as a whole.
    void set_graph(bool on) {
        graph_.reset();
        if (on) graph_.emplace(*model_);
    }
    void warm_up() {
        update();  // chooses algorithms, fills caches
        if (device_.is_cuda()) update();
        if (!graph_) return;
        update();  // the first updates record the passes
        LEVIN_REQUIRE(graph_->failure().empty(), "bench step",
                      "the passes could not be recorded as a CUDA graph: {}", graph_->failure());
    }
    void forward_backward() {
        const double all = static_cast<double>(tokens()) * static_cast<double>(micro_batches_.size());
        run_passes(*model_, micro_batches_, {.scale = 1 / all, .chunk_tokens = loss_chunk_}, nullptr,
                   graph_ ? &*graph_ : nullptr);
    }
    void update() {
        forward_backward();
        optimizer_.step(1e-4);
    }

    struct Times {
        Spread forward_backward_ms, optimizer_ms, update_ms, products_ms, share;
        double host_ms = 0;
    };
    // The update and, where given, its products alone, by turns.
    Times measure(int turns, const StepProducts* products) {
        const Stream stream = micro_batches_[0].ids.stream();
        std::vector<Load> loads{[this](const auto& mark) {
            forward_backward();
            mark();
            optimizer_.step(1e-4);
            mark();
        }};
        if (products)
            loads.push_back([products](const auto& mark) {
                products->run();
                mark();
            });
        const std::vector<LoadTimes> measured = by_turns(stream, loads, turns);
        const LoadTimes& updates = measured[0];
        Times times;
        times.forward_backward_ms = spread_of(updates.parts[0]);
        times.optimizer_ms = spread_of(updates.parts[1]);
        times.update_ms = spread_of(updates.runs);
        times.host_ms = device_.is_cpu() ? times.update_ms.median : host_ms(stream);
        if (!products) return times;
        times.products_ms = spread_of(measured[1].runs);
        std::vector<double> shares;  // neighbours in time, as a device warms up
        for (size_t turn = 0; turn < updates.turns.size(); ++turn)
            shares.push_back(measured[1].turns[turn] / updates.turns[turn]);
        times.share = spread_of(shares);
        return times;
    }

private:
    // What the host needs to queue an update when nothing is queued before it. (On a CPU, where a kernel has
    // ended when it was called, that is the update.)
    double host_ms(const Stream& stream) {
        std::vector<double> queued;
        for (int i = 0; i < 3; ++i) {
            kernels::synchronize(stream);
            const auto start = std::chrono::steady_clock::now();
            update();
            queued.push_back(
                std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
        }
        return spread_of(queued).median;
    }

    static std::unique_ptr<LanguageModel> initialized(const Config& config, DType dtype,
                                                      const Device& device) {
        auto model = std::make_unique<LanguageModel>(config.model, dtype, device);
        model->initialize(1);
        model->set_recomputation(static_cast<Recomputation>(config.trainer.recompute),
                                 config.trainer.recompute_slice);
        return model;
    }

    Device device_;
    int64_t batch_, length_, loss_chunk_;
    std::unique_ptr<LanguageModel> model_;
    Optimizer optimizer_;
    std::optional<StepGraph> graph_;
    std::vector<DeviceBatch> micro_batches_;
};

// Which ways of launching the passes to measure: with a graph or without.
std::vector<bool> ways(const Options& options, const Config& config, const Device& device,
                       const DevicePeak& peak) {
    const bool asked = options.compare_graph || config.trainer.step_graph == Switch::on;
    const std::string obstacle = step_graph_obstacle(config, device.type, 1);
    LEVIN_REQUIRE(!asked || obstacle.empty(), "bench step", "{}, but {}",
                  options.compare_graph ? "--compare-graph is given" : "trainer.step_graph is on", obstacle);
    if (options.compare_graph) return {false, true};
    return {wants_step_graph(config, device, 1, peak.flops_per_second)};
}

void run(const Options& options) {
    const Device device = prepare(options.common);
    const DType dtype = parse_float_type(options.common.dtype);
    const bool json = options.common.json;
    const Config config = load_config(options.config, options.overrides);
    const DevicePeak peak = device_peak(device, dtype);
    Bench bench(config, dtype, device, options.accumulate);

    struct Row {
        bool graph;
        Bench::Times times;
        size_t peak_memory;
    };
    const int64_t length = config.trainer.sequence_length, micro_tokens = bench.tokens();
    std::vector<Row> rows;
    std::optional<StepProducts> products;
    size_t beside = 0;  // bytes of their operands
    for (const bool graph : ways(options, config, device, peak)) {
        if (!options.no_bound && !products) {
            bench.warm_up();
            StepObserver observer(device, false);
            bench.update();
            const size_t before = memory_statistics(device).live_total;
            products.emplace(device, observer.products(), config.model.vocab_size, micro_tokens,
                             options.accumulate);
            beside = memory_statistics(device).live_total - before;
            products->run();  // chooses algorithms
        }
        bench.set_graph(graph);
        bench.warm_up();
        reset_peak_memory(device);
        bench.update();
        const size_t peak_memory = memory_statistics(device).peak_total - beside;
        rows.push_back({graph, bench.measure(options.repeats, products ? &*products : nullptr), peak_memory});
    }
    bench.set_graph(false);  // what follows looks at single kernels
    if (options.profile) {
        StepObserver observer(device, true);
        bench.update();
        observer.print(json, rows.back().times.update_ms.median);
        if (products) products->table().print(json);
    }
    const double flops = products ? products->flops() : 0;
    products.reset();
    if (options.memory) print_memory(device, json, [&] { bench.update(); });

    Table spreads({"quantity", "graph", "lower_quartile", "median", "upper_quartile"});
    Table table({"parameters", "batch", "length", "micro_batches", "graph", "host_ms", "forward_backward_ms",
                 "optimizer_ms", "step_ms", "tokens_per_second", "products_ms", "share_of_products", "gflops",
                 "share_of_peak", "products_share_of_peak", "peak_gflops", "memory_gib"});
    const auto or_none = [&](const char* format, double value) {
        return options.no_bound ? std::string("-") : fmt::format(fmt::runtime(format), value);
    };
    const double tokens = static_cast<double>(micro_tokens * options.accumulate);
    for (const auto& [graph, times, peak_memory] : rows) {
        const std::string way = graph ? "yes" : "no";
        const auto add_spread = [&](const char* name, const Spread& spread, const char* format) {
            const auto cell = [&](double value) { return fmt::format(fmt::runtime(format), value); };
            spreads.add({name, way, cell(spread.lower), cell(spread.median), cell(spread.upper)});
        };
        add_spread("step_ms", times.update_ms, "{:.2f}");
        add_spread("optimizer_ms", times.optimizer_ms, "{:.2f}");
        if (!options.no_bound) {
            add_spread("products_ms", times.products_ms, "{:.2f}");
            add_spread("share_of_products", times.share, "{:.4f}");
        }
        const double step_ms = times.update_ms.median;
        const double rate = tokens / step_ms * 1e3 * config.model.flops_per_token(length);
        table.add({fmt::to_string(config.model.parameter_count()), fmt::to_string(config.trainer.micro_batch),
                   fmt::to_string(length), fmt::to_string(options.accumulate), way,
                   fmt::format("{:.2f}", times.host_ms),
                   fmt::format("{:.2f}", times.forward_backward_ms.median),
                   fmt::format("{:.2f}", times.optimizer_ms.median), fmt::format("{:.2f}", step_ms),
                   fmt::format("{:.0f}", tokens / step_ms * 1e3), or_none("{:.2f}", times.products_ms.median),
                   or_none("{:.3f}", times.share.median), fmt::format("{:.1f}", rate / 1e9),
                   fmt::format("{:.3f}", rate / peak.flops_per_second),
                   or_none("{:.3f}", flops / step_ms * 1e3 / peak.flops_per_second),
                   fmt::format("{:.1f}", peak.flops_per_second / 1e9),
                   fmt::format("{:.3f}", static_cast<double>(peak_memory) / (1 << 30))});
    }
    spreads.print(json);
    table.print(json);
    if (!json)
        fmt::print(
            "host_ms: until the host has queued an update; graph: passes launched as a whole "
            "(trainer.step_graph)\n"
            "products_ms: every matrix product of the update at its shape, alone, over and over, by turns "
            "with "
            "the step; share_of_products: how much of the step that is, in the middle turn\npeak: {}\n",
            peak.source);
}

}  // namespace

void add_step(CLI::App& bench) {
    auto options = std::make_shared<Options>();
    CLI::App* command = bench.add_subcommand("step", "A training step of a configuration");
    command->footer("Example: levin bench step configs/quickstart.yaml trainer.recompute=full");
    add_common(*command, options->common);
    command->add_option("CONFIG", options->config, "YAML file")->required();
    command->add_option("key=value", options->overrides, "Settings that replace those of the file");
    command
        ->add_option("--repeats", options->repeats,
                     "Turns of the step and of its products: a second each on a GPU")
        ->capture_default_str()
        ->check(positive());
    command->add_option("--accumulate", options->accumulate, "Micro-batches of an update")
        ->capture_default_str()
        ->check(positive());
    command->add_flag("--memory", options->memory, "Also what lives at the peak, by op");
    command->add_flag("--profile", options->profile,
                      "Also the time of every kernel, and of every product alone");
    command->add_flag("--compare-graph", options->compare_graph,
                      "Two rows: passes launched kernel by kernel, and recorded as a CUDA graph");
    command->add_flag("--no-bound", options->no_bound, "Do not measure the matrix products alone");
    command->callback([options] { run(*options); });
}

}  // namespace levin::bench
