#include "launch/commands/bench/step_profile.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <tuple>

#include "kernels/device_memory.h"

namespace levin::bench {

namespace {

std::string describe(const kernels::Gemm& g) {
    return fmt::format("gemm {}{} {} x {} x {} to {}{}", g.transpose_a ? 'T' : 'N', g.transpose_b ? 'T' : 'N',
                       g.m, g.n, g.k, to_string(g.c_dtype), g.beta != 0 ? ", added" : "");
}

// What makes two products alike. Strides count: a slice of a wider matrix may be slower.
auto key_of(const kernels::Gemm& g) {
    return std::tuple(g.transpose_a, g.transpose_b, g.m, g.n, g.k, g.dtype, g.c_dtype, g.lda, g.ldb, g.ldc,
                      g.beta != 0);
}

double flops_of(const kernels::Gemm& g) {
    return 2.0 * static_cast<double>(g.m) * static_cast<double>(g.n) * static_cast<double>(g.k);
}

// Milliseconds of one product at full speed: the median of rounds of several launches.
double time_product(const Device& device, kernels::Gemm g) {
    const Tensor a = random_values({g.transpose_a ? g.k : g.m, g.lda}, g.dtype, device);
    const Tensor b = random_values({g.transpose_b ? g.n : g.k, g.ldb}, g.dtype, device);
    const Tensor c = random_values({g.m, g.ldc}, g.c_dtype, device);
    g.a = a.data();
    g.b = b.data();
    g.c = c.data();
    const Stream stream = a.stream();
    const auto seconds = [&](int launches) {
        kernels::StreamEvent start(device), stop(device);
        start.record(stream);
        for (int i = 0; i < launches; ++i) kernels::gemm(stream, g);
        stop.record(stream);
        return stop.ms_since(start) / launches;
    };
    kernels::gemm_tuning(stream, g);
    seconds(1);
    const int launches = std::clamp(static_cast<int>(10 / std::max(1e-3, seconds(1))), 1, 100);
    std::vector<double> rounds;
    for (int i = 0; i < 5; ++i) rounds.push_back(seconds(launches));
    std::nth_element(rounds.begin(), rounds.begin() + 2, rounds.end());
    return rounds[2];
}

}  // namespace

StepObserver::StepObserver(const Device& device, bool with_times)
    : device_(device), with_times_(with_times), previous_(kernels::set_kernel_observer(this)) {}
StepObserver::~StepObserver() { kernels::set_kernel_observer(previous_); }

void StepObserver::before(const char* name, const Stream& stream, const void* args) {
    const bool is_gemm = std::strcmp(name, "gemm") == 0;
    if (is_gemm) products_.push_back(*static_cast<const kernels::Gemm*>(args));
    if (!with_times_) return;
    calls_.push_back({is_gemm ? describe(products_.back()) : name,
                      std::make_unique<kernels::StreamEvent>(device_),
                      std::make_unique<kernels::StreamEvent>(device_)});
    calls_.back().start->record(stream);
}

void StepObserver::after(const char*, const Stream& stream) {
    if (with_times_) calls_.back().stop->record(stream);
}

void StepObserver::print(bool json, double update_ms) const {
    struct Sum {
        int64_t calls = 0;
        double ms = 0;
    };
    std::map<std::string, Sum> sums;
    double total = 0, gemm = 0;
    for (const Call& call : calls_) {
        const double ms = call.stop->ms_since(*call.start);
        ++sums[call.name].calls;
        sums[call.name].ms += ms;
        total += ms;
        if (call.name.starts_with("gemm ")) gemm += ms;
    }
    std::vector<std::pair<std::string, Sum>> rows(sums.begin(), sums.end());
    std::sort(rows.begin(), rows.end(),
              [](const auto& a, const auto& b) { return a.second.ms > b.second.ms; });
    Table table({"kernel", "calls", "ms", "us_each", "share"});
    const auto add = [&](const std::string& name, int64_t calls, double ms) {
        table.add({name, calls > 0 ? fmt::to_string(calls) : "", fmt::format("{:.3f}", ms),
                   calls > 0 ? fmt::format("{:.1f}", ms * 1e3 / static_cast<double>(calls)) : "",
                   fmt::format("{:.3f}", ms / update_ms)});
    };
    for (const auto& [name, sum] : rows) add(name, sum.calls, sum.ms);
    add("all matrix products", 0, gemm);
    add("all other kernels", 0, total - gemm);
    add("update, not observed", 0, update_ms);
    table.print(json);
}

ProductBound product_bound(const Device& device, const std::vector<kernels::Gemm>& products, int64_t vocab,
                           int64_t tokens, int64_t micro_batches) {
    struct Entry {
        kernels::Gemm product;
        int64_t count;
    };
    std::map<decltype(key_of(kernels::Gemm{})), Entry> unique;
    const auto add = [&](const kernels::Gemm& g, int64_t count) {
        if (count > 0) unique.try_emplace(key_of(g), Entry{g, 0}).first->second.count += count;
    };
    std::map<std::tuple<bool, bool>, kernels::Gemm> head;  // its three kinds, by their transposes
    for (const kernels::Gemm& g : products) {
        if (g.m == vocab || g.n == vocab || g.k == vocab)
            head.try_emplace({g.transpose_a, g.transpose_b}, g);
        else
            add(g, 1);
    }
    for (auto& [kind, g] : head) {
        const bool weight_gradient = g.m == vocab;
        (weight_gradient ? g.k : g.m) = tokens;
        g.beta = 0;
        add(g, weight_gradient ? 1 : micro_batches);
        g.beta = 1;
        if (weight_gradient) add(g, micro_batches - 1);
    }
    ProductBound bound;
    for (auto& [key, entry] : unique) {
        const double ms = time_product(device, entry.product), count = static_cast<double>(entry.count);
        const double flops = flops_of(entry.product);
        bound.ms += count * ms;
        bound.flops += count * flops;
        bound.table.add({describe(entry.product), fmt::to_string(entry.count), fmt::format("{:.4f}", ms),
                         fmt::format("{:.3f}", count * ms), fmt::format("{:.1f}", flops / ms / 1e9)});
        release_cached_memory(device);
    }
    bound.table.add({"all", "", "", fmt::format("{:.3f}", bound.ms),
                     fmt::format("{:.1f}", bound.flops / bound.ms / 1e9)});
    return bound;
}

}  // namespace levin::bench
