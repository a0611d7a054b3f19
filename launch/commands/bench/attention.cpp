// Lightning attention alone: time per token at growing length, forward and forward + backward.
#include <fmt/format.h>

#include <algorithm>

#include "core/random.h"
#include "kernels/lightning_attention.h"
#include "launch/commands/bench/bench.h"
#include "launch/commands/options.h"
#include "model/slopes.h"

namespace levin::bench {

namespace {

struct Options {
    Common common;
    std::vector<int64_t> lengths{1024, 2048, 4096, 8192, 16384, 32768, 65536};
    int64_t heads = 4, head_dim = 64, tokens = 65536, layer = -1, rounds = 7;
};

// 4 B D + 4 D^2 FLOP a token and head forward, 10 B D + 10 D^2 backward (SPEC section 2), tiles of B = 64.
double flops(int64_t tokens, int64_t heads, int64_t d, bool backward) {
    const double per_token = (backward ? 10.0 : 4.0) * static_cast<double>(d) * static_cast<double>(64 + d);
    return per_token * static_cast<double>(tokens * heads);
}

void run(const Options& options) {
    const Device device = prepare(options.common);
    const DType dtype = parse_float_type(options.common.dtype);
    const int64_t width = options.heads * options.head_dim;
    ModelConfig config;
    config.hidden_size = width;
    config.num_heads = options.heads;
    config.num_layers = 24;
    const int64_t layer = options.layer < 0 ? config.num_layers / 2 : options.layer;
    const std::vector<float> decays = decay_slopes(config, layer);
    const Tensor slopes = Tensor::from({options.heads}, decays, device);
    Table table({"batch", "length", "heads", "head_dim", "forward_ms", "forward_ns_per_token",
                 "forward_gflops", "both_ms", "both_ns_per_token", "both_gflops"});
    const auto batch_of = [&](int64_t length) { return std::max<int64_t>(1, options.tokens / length); };
    int64_t most = 0;
    for (const int64_t length : options.lengths) most = std::max(most, batch_of(length) * length);
    Tensor in[4], out[4];
    for (int i = 0; i < 4; ++i) {
        in[i] = Tensor::empty({most, width}, dtype, device);
        out[i] = Tensor::empty({most, width}, dtype, device);
        fill_normal(in[i], Random(1, fmt::format("bench{}", i)), 1);
    }
    // Seconds of forward, and of forward and backward.
    const auto measure = [&](int64_t length) {
        const int64_t batch = batch_of(length);
        const kernels::LightningShape shape{.batch = batch,
                                            .length = length,
                                            .heads = options.heads,
                                            .key_dim = options.head_dim,
                                            .value_dim = options.head_dim,
                                            .dtype = dtype,
                                            .qk_activation = Activation::silu,
                                            .slopes = slopes.data<float>(),
                                            .steepest = *std::max_element(decays.begin(), decays.end())};
        kernels::LightningForward forward{.shape = shape,
                                          .q = in[0].data(),
                                          .q_stride = width,
                                          .k = in[1].data(),
                                          .k_stride = width,
                                          .v = in[2].data(),
                                          .v_stride = width,
                                          .o = out[3].data(),
                                          .initial_state = nullptr,
                                          .final_state = nullptr};
        // As in training: forward leaves backward the states it asks for.
        const Tensor kept =
            Tensor::empty({kernels::lightning_states_to_keep(slopes.stream(), forward)}, DType::f32, device);
        if (kept.count() > 0) forward.kept_states = kept.data<float>();
        const kernels::LightningBackward backward{.shape = shape,
                                                  .q = forward.q,
                                                  .q_stride = width,
                                                  .k = forward.k,
                                                  .k_stride = width,
                                                  .v = forward.v,
                                                  .v_stride = width,
                                                  .d_o = in[3].data(),
                                                  .initial_state = nullptr,
                                                  .d_final_state = nullptr,
                                                  .dq = out[0].data(),
                                                  .dq_stride = width,
                                                  .dk = out[1].data(),
                                                  .dk_stride = width,
                                                  .dv = out[2].data(),
                                                  .dv_stride = width,
                                                  .dtheta = nullptr,
                                                  .beta = 0,
                                                  .d_initial_state = nullptr,
                                                  .kept_states = forward.kept_states};
        // On a GPU many calls are queued one after the other, as in a training step.
        const int calls = device.type == DeviceType::cuda ? 20 : 1;
        const auto seconds = [&](bool with_backward) {
            return median_seconds(
                       slopes.stream(),
                       [&] {
                           for (int i = 0; i < calls; ++i) {
                               kernels::lightning_forward(slopes.stream(), forward);
                               if (with_backward) kernels::lightning_backward(slopes.stream(), backward);
                           }
                       },
                       3, 0) /
                   calls;
        };
        return std::pair{seconds(false), seconds(true)};
    };
    // The lengths take turns and each keeps its best round, so that a machine that is slower for a while is
    // slower for all of them.
    std::vector<std::pair<double, double>> best(options.lengths.size(), {1e30, 1e30});
    for (int64_t round = 0; round < options.rounds; ++round)
        for (size_t i = 0; i < best.size(); ++i) {
            const auto [once, both] = measure(options.lengths[i]);
            best[i] = {std::min(best[i].first, once), std::min(best[i].second, both)};
        }
    for (size_t i = 0; i < best.size(); ++i) {
        const int64_t length = options.lengths[i], batch = batch_of(length), tokens = batch * length;
        const auto [once, both] = best[i];
        const auto n = static_cast<double>(tokens);
        const double work = flops(tokens, options.heads, options.head_dim, false);
        const double all = work + flops(tokens, options.heads, options.head_dim, true);
        table.add({fmt::to_string(batch), fmt::to_string(length), fmt::to_string(options.heads),
                   fmt::to_string(options.head_dim), fmt::format("{:.3f}", once * 1e3),
                   fmt::format("{:.1f}", once * 1e9 / n), fmt::format("{:.1f}", work / once / 1e9),
                   fmt::format("{:.3f}", both * 1e3), fmt::format("{:.1f}", both * 1e9 / n),
                   fmt::format("{:.1f}", all / both / 1e9)});
    }
    table.print(options.common.json);
}

}  // namespace

void add_attention(CLI::App& bench) {
    auto options = std::make_shared<Options>();
    CLI::App* command = bench.add_subcommand("attention", "Lightning attention at growing length");
    add_common(*command, options->common);
    command->add_option("--lengths", options->lengths, "Lengths to measure")
        ->delimiter(',')
        ->check(CLI::Range(int64_t{1}, int64_t{1} << 30));
    command->add_option("--heads", options->heads)->capture_default_str()->check(CLI::PositiveNumber);
    command->add_option("--head-dim", options->head_dim)->capture_default_str()->check(CLI::PositiveNumber);
    command
        ->add_option(
            "--tokens", options->tokens,
            "Fill the batch to this many tokens, so that each row moves the same bytes; 0: one sequence")
        ->capture_default_str();
    command->add_option("--layer", options->layer, "Slopes of this one of 24 layers; -1: the middle one")
        ->capture_default_str();
    command->add_option("--rounds", options->rounds, "Rounds over all lengths; the best of each is kept")
        ->capture_default_str()
        ->check(CLI::PositiveNumber);
    command->callback([options] { run(*options); });
}

}  // namespace levin::bench
