// Recurrent decoding: time and memory of a step at several positions, beside the time its bytes would need.
#include <fmt/format.h>

#include "kernels/device_memory.h"
#include "kernels/elementwise.h"
#include "kernels/stream_event.h"
#include "launch/commands/bench/bench.h"
#include "launch/commands/bench/step_profile.h"
#include "launch/commands/options.h"
#include "launch/commands/values.h"
#include "model/decoder.h"
#include "trainer/config.h"
#include "trainer/generation.h"

namespace levin::bench {

namespace {

struct Options {
    Common common;
    std::string config;
    std::vector<std::string> overrides;
    std::vector<int64_t> positions{100, 1000, 10000, 100000}, batches{1};
    int64_t tokens = 50;
    bool no_prefill = false, profile = false;
};

// Bytes per second of a large copy, read and written ones together.
double copy_rate(const Device& device) {
    const int64_t count = int64_t{device.is_cpu() ? 16 : 256} << 20;
    const Tensor from = random_values({count}, DType::f32, device),
                 to = Tensor::empty({count}, DType::f32, device);
    double best = 1e30;
    for (int i = 0; i < 8; ++i) {
        kernels::StreamEvent start(device), stop(device);
        start.record(from.stream());
        kernels::add(from.stream(), {.count = count,
                                     .dtype = DType::f32,
                                     .alpha = 1,
                                     .a = from.data(),
                                     .beta = 0,
                                     .b = nullptr,
                                     .y = to.data()});
        stop.record(from.stream());
        best = std::min(best, stop.ms_since(start));
    }
    return 2.0 * static_cast<double>(from.bytes()) / best * 1e3;
}

std::vector<int32_t> some_tokens(int64_t count, int64_t vocab) {
    std::vector<int32_t> ids(static_cast<size_t>(count));
    for (size_t i = 0; i < ids.size(); ++i)
        ids[i] = static_cast<int32_t>((i * 7919 + 13) % static_cast<size_t>(vocab));
    return ids;
}

class Bench {
public:
    explicit Bench(const Options& options)
        : options_(options),
          device_(prepare(options.common)),
          config_(load_config(options.config, options.overrides)),
          model_(config_.model, parse_float_type(options.common.dtype), device_) {
        model_.initialize(1);
    }

    void run() {
        const double rate = copy_rate(device_);
        Table table({"batch", "position", "ms_per_step", "tokens_per_second", "gib_per_step",
                     "share_of_copy_rate", "memory_mib"});
        for (const int64_t batch : options_.batches) {
            state_ = model_.new_state();
            for (const int64_t position : options_.positions) measure(batch, position, rate, table);
        }
        table.print(options_.common.json);
        if (!options_.common.json)
            fmt::print(
                "copy rate: {:.0f} GB/s; share: time of the bytes at that rate over the time of a step\n",
                rate / 1e9);
    }

private:
    void measure(int64_t batch, int64_t position, double rate, Table& table) {
        LEVIN_REQUIRE(position >= state_.position, "bench", "--positions must ascend");
        const bool fast = Decoder::supports(model_);
        if (!fast || !options_.no_prefill)
            while (state_.position < position)
                prefill(batch, std::min<int64_t>(2048, position - state_.position));
        release_cached_memory(device_);
        reset_peak_memory(device_);
        double ms = 0;
        size_t bytes = 0;
        if (fast) {
            Decoder decoder(model_, batch);
            if (!options_.no_prefill) decoder.set_state(state_);
            decoder.set_position(position);
            decoder.set_tokens(some_tokens(batch, config_.model.vocab_size));
            ms = steps_ms([&] { decoder.step(); });
            bytes = decoder.bytes_per_step();
            if (options_.profile) profile(batch, position, ms);
        } else {
            LEVIN_REQUIRE(batch == 1, "bench", "this model decodes one sequence at a time, not {}", batch);
            ms = steps_ms([&] { feed(model_, state_, some_tokens(1, config_.model.vocab_size)); });
        }
        const double peak = static_cast<double>(memory_statistics(device_).peak_total);
        table.add({fmt::to_string(batch), fmt::to_string(position), fmt::format("{:.4f}", ms),
                   fmt::format("{:.1f}", static_cast<double>(batch) / ms * 1e3),
                   bytes == 0 ? "-" : fmt::format("{:.4f}", static_cast<double>(bytes) / (1 << 30)),
                   bytes == 0 ? "-" : fmt::format("{:.3f}", static_cast<double>(bytes) / rate / ms * 1e3),
                   fmt::format("{:.3f}", peak / (1 << 20))});
    }

    // Kernels of a step launched one after the other, each between two events: none overlaps the next.
    void profile(int64_t batch, int64_t position, double ms) const {
        Decoder decoder(model_, batch);  // records its second step, not the first
        decoder.set_position(position);
        decoder.set_tokens(some_tokens(batch, config_.model.vocab_size));
        const StepObserver observer(device_, true);
        decoder.step();
        observer.print(options_.common.json, ms);
    }

    void prefill(int64_t batch, int64_t length) {
        NoGradient off;
        const auto ids = some_tokens(batch * length, config_.model.vocab_size);
        model_.hidden(Tensor::from({batch * length}, ids, device_), {.batch = batch, .length = length},
                      &state_);
    }

    // Mean over steps that follow each other; the best of five such rounds.
    double steps_ms(const std::function<void()>& step) const {
        for (int i = 0; i < 3; ++i) step();
        const Stream stream = kernels::default_stream(device_);
        double best = 1e30;
        for (int round = 0; round < 5; ++round) {
            kernels::StreamEvent start(device_), stop(device_);
            start.record(stream);
            for (int64_t i = 0; i < options_.tokens; ++i) step();
            stop.record(stream);
            best = std::min(best, stop.ms_since(start) / static_cast<double>(options_.tokens));
        }
        return best;
    }

    const Options& options_;
    Device device_;
    Config config_;
    LanguageModel model_;
    DecodeState state_;
};

}  // namespace

void add_decode(CLI::App& bench) {
    auto options = std::make_shared<Options>();
    CLI::App* command = bench.add_subcommand("decode", "Recurrent decoding at growing position");
    command->footer("Example: levin bench decode configs/quickstart.yaml --positions 100,100000 --batch 1,8");
    add_common(*command, options->common);
    command->add_option("CONFIG", options->config, "YAML file")->required();
    command->add_option("key=value", options->overrides, "Settings that replace those of the file");
    command->add_option("--positions", options->positions, "Positions to measure at, ascending")
        ->delimiter(',');
    command->add_option("--batch", options->batches, "Sequences decoded together; several: one after another")
        ->delimiter(',')
        ->check(positive());
    command->add_option("--tokens", options->tokens, "Steps per measurement")
        ->capture_default_str()
        ->check(positive());
    command->add_flag(
        "--no-prefill", options->no_prefill,
        "Do not run the tokens in front of a position: its states are zero, which costs the same");
    command->add_flag("--profile", options->profile,
                      "Also the time of each kernel of a step, launched alone");
    command->callback([options] { Bench(*options).run(); });
}

}  // namespace levin::bench
