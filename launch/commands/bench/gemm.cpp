// Matrix products at the shapes of a training step, as a share of the best square product of this process.
#include "kernels/gemm.h"

#include <fmt/format.h>

#include "launch/commands/bench/bench.h"
#include "launch/commands/options.h"
#include "launch/commands/values.h"
#include "trainer/throughput.h"

namespace levin::bench {

namespace {

struct Options {
    Common common;
    int64_t tokens = 2048, hidden = 192, glu = 512, vocab = 257;
};

void run(const Options& options) {
    const Device device = prepare(options.common);
    const DType dtype = parse_float_type(options.common.dtype);
    const double ceiling = device_peak(device, dtype).flops_per_second;
    Table table(
        {"product", "m", "n", "k", "output", "ms", "gflops", "share_of_peak", "algorithm", "first_guess_ms"});
    const auto measure = [&](const std::string& name, bool ta, bool tb, int64_t m, int64_t n, int64_t k,
                             DType c_dtype, double beta) {
        const Tensor a = random_values({ta ? k : m, ta ? m : k}, dtype, device),
                     b = random_values({tb ? n : k, tb ? k : n}, dtype, device);
        Tensor c = Tensor::zeros({m, n}, c_dtype, device);
        const kernels::Gemm product{.transpose_a = ta,
                                    .transpose_b = tb,
                                    .m = m,
                                    .n = n,
                                    .k = k,
                                    .dtype = dtype,
                                    .c_dtype = c_dtype,
                                    .a = a.data(),
                                    .lda = a.dim(1),
                                    .b = b.data(),
                                    .ldb = b.dim(1),
                                    .c = c.data(),
                                    .ldc = n,
                                    .beta = beta};
        const kernels::GemmTuning tuning = kernels::gemm_tuning(a.stream(), product);
        const double seconds = median_seconds(a.stream(), [&] { kernels::gemm(a.stream(), product); });
        const double rate =
            2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k) / seconds;
        table.add({name, fmt::to_string(m), fmt::to_string(n), fmt::to_string(k), to_string(c_dtype),
                   fmt::format("{:.3f}", seconds * 1e3), fmt::format("{:.1f}", rate / 1e9),
                   fmt::format("{:.3f}", rate / ceiling),
                   tuning.proposals == 0 ? "-"
                                         : fmt::format("{} of {}{}", tuning.chosen + 1, tuning.proposals,
                                                       tuning.from_file ? ", cached" : ""),
                   tuning.first_ms == 0 ? "-" : fmt::format("{:.3f}", tuning.first_ms)});
    };
    const DType acc = accumulator_of(dtype);
    const int64_t t = options.tokens;
    const auto layer = [&](const std::string& name, int64_t in, int64_t out) {
        measure(name + " forward", false, true, t, out, in, dtype, 0);
        measure(name + " data gradient", false, false, t, in, out, dtype, 0);
        measure(name + " weight gradient", true, false, out, in, t, acc, 1);
    };
    layer("qkvu", options.hidden, 4 * options.hidden);
    layer("out", options.hidden, options.hidden);
    layer("glu.in", options.hidden, 2 * options.glu);
    layer("glu.out", options.glu, options.hidden);
    layer("head", options.hidden, options.vocab);
    table.print(options.common.json);
}

}  // namespace

void add_gemm(CLI::App& bench) {
    auto options = std::make_shared<Options>();
    CLI::App* command = bench.add_subcommand("gemm", "Matrix products of a training step");
    command->footer("Example: levin bench gemm --hidden 1024 --glu 2816 --vocab 32000 --tokens 4096");
    add_common(*command, options->common);
    command->add_option("--tokens", options->tokens)->capture_default_str()->check(positive());
    command->add_option("--hidden", options->hidden, "hidden_size")->capture_default_str()->check(positive());
    command->add_option("--glu", options->glu, "glu_dim")->capture_default_str()->check(positive());
    command->add_option("--vocab", options->vocab, "vocab_size")->capture_default_str()->check(positive());
    command->callback([options] { run(*options); });
}

}  // namespace levin::bench
