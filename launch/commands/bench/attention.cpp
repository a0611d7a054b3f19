// Lightning attention alone: time per token at growing length, forward and forward + backward; or its results
// on the tensors of a file.
#include <fmt/format.h>

#include <algorithm>

#include "checkpoint/safetensors.h"
#include "core/ops/lightning_arguments.h"
#include "core/random.h"
#include "launch/commands/bench/bench.h"
#include "launch/commands/options.h"
#include "launch/commands/values.h"
#include "model/slopes.h"

namespace levin::bench {

namespace {

struct Options {
    Common common;
    std::vector<int64_t> lengths{1024, 2048, 4096, 8192, 16384, 32768, 65536};
    int64_t heads = 4, head_dim = 64, tokens = 65536, layer = -1, rounds = 7;
    bool no_decay = false;
    std::string inputs, outputs, activation = "silu";
};

// 4 B D + 4 D^2 FLOP a token and head forward, 10 B D + 10 D^2 backward (SPEC section 2), tiles of B = 64.
double flops(int64_t tokens, int64_t heads, int64_t d, bool backward) {
    const double per_token = (backward ? 10.0 : 4.0) * static_cast<double>(d) * static_cast<double>(64 + d);
    return per_token * static_cast<double>(tokens * heads);
}

// One forward and one backward: q, k, v and d_o in, dq, dk, dv and o out, each contiguous.
struct Call {
    kernels::LightningForward forward;
    kernels::LightningBackward backward;
    Tensor kept;  // as in training: forward leaves backward the states it asks for
};

Call make_call(const kernels::LightningShape& shape, const Tensor (&in)[4], const Tensor (&out)[4]) {
    const int64_t key_width = shape.heads * shape.key_dim, value_width = shape.heads * shape.value_dim;
    const auto rows = [](const Tensor& x, int64_t width) { return x.view({-1, width}); };
    const ops::LightningTensors x{
        rows(in[0], key_width), rows(in[1], key_width), rows(in[2], value_width), {}, {}};
    const ops::LightningGradients d{
        rows(out[0], key_width), rows(out[1], key_width), rows(out[2], value_width), {}};
    Call call;
    call.forward = ops::lightning_forward_of(shape, x, out[3], {}, {}, {});
    if (const int64_t count = kernels::lightning_states_to_keep(x.q.stream(), call.forward); count > 0) {
        call.kept = Tensor::empty({count}, DType::f32, x.q.device());
        call.forward.kept_states = call.kept.data<float>();
    }
    call.backward = ops::lightning_backward_of(shape, x, in[3], {}, {}, d, {}, call.kept);
    return call;
}

Activation activation_of(const std::string& name) {
    for (const auto& entry : enum_names<Activation>())
        if (entry.name == name) return entry.value;
    fail(Fault::input, "bench attention", "--activation is {}, expected one of those of model.qk_activation",
         name);
}

// q, k, v, d_o [batch, length, heads, width] of one type and slopes f32 [heads] from the file `inputs`; o,
// dq, dk, dv of the same shapes and type into `outputs`.
void run_file(const Options& options, const Device& device) {
    const SafetensorsReader reader(options.inputs);
    Tensor in[4], out[4];
    const char* names[] = {"q", "k", "v", "d_o"};
    for (int i = 0; i < 4; ++i) in[i] = reader.read(names[i]).to(device);
    const Tensor slopes = reader.read("slopes").to(device);
    for (int i = 0; i < 4; ++i)
        LEVIN_REQUIRE(
            in[i].rank() == 4 && in[i].dtype() == in[0].dtype() &&
                in[i].shape() == in[i < 2 ? 0 : 2].shape() &&
                std::equal(in[i].shape().begin(), in[i].shape().begin() + 3, in[0].shape().begin()),
            "bench attention",
            "{} of {} is {} {}; q and k, v and d_o need one type and the shape [batch, length, heads, "
            "width] each",
            names[i], options.inputs, to_string(in[i].dtype()), to_string(in[i].shape()));
    LEVIN_REQUIRE(slopes.dtype() == DType::f32 && slopes.shape() == Shape{in[0].dim(2)}, "bench attention",
                  "slopes of {} is {} {}, expected f32 [{}]", options.inputs, to_string(slopes.dtype()),
                  to_string(slopes.shape()), in[0].dim(2));
    const std::vector<double> values = slopes.to_vector();
    const kernels::LightningShape shape{
        .batch = in[0].dim(0),
        .length = in[0].dim(1),
        .heads = in[0].dim(2),
        .key_dim = in[0].dim(3),
        .value_dim = in[2].dim(3),
        .dtype = in[0].dtype(),
        .qk_activation = activation_of(options.activation),
        .slopes = slopes.data<float>(),
        .steepest = static_cast<float>(*std::max_element(values.begin(), values.end()))};
    const char* results[] = {"dq", "dk", "dv", "o"};
    std::vector<TensorInfo> layout;
    for (int i = 0; i < 4; ++i) {
        const Tensor& like = in[i < 3 ? i : 2];
        out[i] = Tensor::empty(like.shape(), like.dtype(), device);
        layout.push_back({results[i], like.dtype(), like.shape()});
    }
    const Call call = make_call(shape, in, out);
    kernels::lightning_forward(slopes.stream(), call.forward);
    kernels::lightning_backward(slopes.stream(), call.backward);
    SafetensorsWriter writer(options.outputs, layout);
    for (int i = 0; i < 4; ++i) writer.write(results[i], out[i]);
    writer.finish();
}

void run(const Options& options) {
    const Device device = prepare(options.common);
    if (!options.inputs.empty()) return run_file(options, device);
    const DType dtype = parse_float_type(options.common.dtype);
    const int64_t width = options.heads * options.head_dim;
    ModelConfig config;
    config.hidden_size = width;
    config.num_heads = options.heads;
    config.num_layers = 24;
    const int64_t layer = options.layer < 0 ? config.num_layers / 2 : options.layer;
    const std::vector<float> decays = options.no_decay
                                          ? std::vector<float>(static_cast<size_t>(options.heads), 0.0f)
                                          : decay_slopes(config, layer);
    const float steepest = *std::max_element(decays.begin(), decays.end());
    const Tensor slopes = Tensor::from({options.heads}, decays, device);
    Table table({"batch", "length", "heads", "head_dim", "forward_ms", "forward_ns_per_token",
                 "forward_gflops", "both_ms", "both_ns_per_token", "both_gflops", "steepest_slope"});
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
        const kernels::LightningShape shape{.batch = batch_of(length),
                                            .length = length,
                                            .heads = options.heads,
                                            .key_dim = options.head_dim,
                                            .value_dim = options.head_dim,
                                            .dtype = dtype,
                                            .qk_activation = activation_of(options.activation),
                                            .slopes = slopes.data<float>(),
                                            .steepest = steepest};
        const Call call = make_call(shape, in, out);
        // On a GPU many calls are queued one after the other, as in a training step.
        const int calls = device.type == DeviceType::cuda ? 20 : 1;
        const auto seconds = [&](bool with_backward) {
            return median_seconds(
                       slopes.stream(),
                       [&] {
                           for (int i = 0; i < calls; ++i) {
                               kernels::lightning_forward(slopes.stream(), call.forward);
                               if (with_backward) kernels::lightning_backward(slopes.stream(), call.backward);
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
                   fmt::format("{:.1f}", all / both / 1e9), fmt::format("{:.3g}", steepest)});
    }
    table.print(options.common.json);
}

}  // namespace

void add_attention(CLI::App& bench) {
    auto options = std::make_shared<Options>();
    CLI::App* command = bench.add_subcommand("attention", "Lightning attention at growing length");
    command->footer(
        "Example: levin bench attention --heads 8 --head-dim 128 --lengths 1024,16384 --tokens 16384");
    add_common(*command, options->common);
    command->add_option("--lengths", options->lengths, "Lengths to measure")
        ->delimiter(',')
        ->check(CLI::Range(int64_t{1}, int64_t{1} << 30));
    command->add_option("--heads", options->heads)->capture_default_str()->check(positive());
    command->add_option("--head-dim", options->head_dim)->capture_default_str()->check(positive());
    command
        ->add_option(
            "--tokens", options->tokens,
            "Fill the batch to this many tokens, so that each row moves the same bytes; 0: one sequence")
        ->capture_default_str();
    CLI::Option* layer =
        command->add_option("--layer", options->layer, "Slopes of this one of 24 layers; -1: the middle one")
            ->capture_default_str()
            ->check(CLI::Range(int64_t{-1}, int64_t{23}));
    command->add_flag("--no-decay", options->no_decay, "Slope 0 for every head")->excludes(layer);
    command->add_option("--rounds", options->rounds, "Rounds over all lengths; the best of each is kept")
        ->capture_default_str()
        ->check(positive());
    command->add_option("--activation", options->activation, "Of q and k, inside the kernel")
        ->capture_default_str();
    CLI::Option* inputs = command->add_option("--inputs", options->inputs,
                                              "A .safetensors file with q, k, v, d_o [batch, length, heads, "
                                              "width] of one type and slopes f32 [heads]: "
                                              "no timing, but o, dq, dk and dv of these into --outputs");
    CLI::Option* outputs =
        command->add_option("--outputs", options->outputs, "The file that --inputs asks for");
    inputs->needs(outputs);
    outputs->needs(inputs);
    command->callback([options] { run(*options); });
}

}  // namespace levin::bench
