#include "launch/commands/bench/step_profile.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <tuple>

#include "kernels/decode.h"

namespace levin::bench {

namespace {

std::string describe(const kernels::Gemm& g) {
    return fmt::format("gemm {}{} {} x {} x {} to {}{}", g.transpose_a ? 'T' : 'N', g.transpose_b ? 'T' : 'N',
                       g.m, g.n, g.k, to_string(g.c_dtype), g.beta != 0 ? ", added" : "");
}

std::string describe(const kernels::DecodeLinear& d) {
    constexpr const char* kInputs[] = {"", ", norm", ", gated norm"};
    return fmt::format("decode_linear {} x {} x {}{}{}", d.batch, d.glu ? 2 * d.outputs : d.outputs, d.width,
                       kInputs[static_cast<int>(d.input)], d.glu ? ", gated" : "");
}

// What makes two products alike. Strides count: a slice of a wider matrix may be slower.
auto key_of(const kernels::Gemm& g) {
    return std::tuple(g.transpose_a, g.transpose_b, g.m, g.n, g.k, g.dtype, g.c_dtype, g.lda, g.ldb, g.ldc,
                      g.beta != 0);
}

double flops_of(const kernels::Gemm& g) {
    return 2.0 * static_cast<double>(g.m) * static_cast<double>(g.n) * static_cast<double>(g.k);
}

double median(std::vector<double> values) {
    const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
    std::nth_element(values.begin(), middle, values.end());
    return *middle;
}

}  // namespace

StepObserver::StepObserver(const Device& device, bool with_times)
    : device_(device), with_times_(with_times), previous_(kernels::set_kernel_observer(this)) {}
StepObserver::~StepObserver() { kernels::set_kernel_observer(previous_); }

void StepObserver::before(const char* name, const Stream& stream, const void* args) {
    const bool is_gemm = std::strcmp(name, "gemm") == 0;
    if (is_gemm) products_.push_back(*static_cast<const kernels::Gemm*>(args));
    if (!with_times_) return;
    const bool is_decode = std::strcmp(name, "decode_linear") == 0;
    calls_.push_back({is_gemm     ? describe(products_.back())
                      : is_decode ? describe(*static_cast<const kernels::DecodeLinear*>(args))
                                  : name,
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
    if (unique.empty()) return {};

    // One set of buffers for all of them, large enough for each.
    int64_t a_bytes = 0, b_bytes = 0, c_bytes = 0;
    for (const auto& [key, entry] : unique) {
        const kernels::Gemm& g = entry.product;
        const auto size = [](int64_t rows, int64_t stride, DType type) {
            return rows * stride * static_cast<int64_t>(size_of(type));
        };
        a_bytes = std::max(a_bytes, size(g.transpose_a ? g.k : g.m, g.lda, g.dtype));
        b_bytes = std::max(b_bytes, size(g.transpose_b ? g.n : g.k, g.ldb, g.dtype));
        c_bytes = std::max(c_bytes, size(g.m, g.ldc, g.c_dtype));
    }
    const DType type = products.front().dtype;
    const auto buffer = [&](int64_t bytes) {
        return random_values({bytes / static_cast<int64_t>(size_of(type))}, type, device);
    };
    const Tensor a = buffer(a_bytes), b = buffer(b_bytes), c = buffer(c_bytes);
    std::vector<Entry> entries;
    for (auto& [key, entry] : unique) {
        entry.product.a = a.data();
        entry.product.b = b.data();
        entry.product.c = c.data();
        entries.push_back(entry);
        kernels::gemm(a.stream(), entry.product);  // chooses its algorithm
    }
    // An update of products only, over and over, until clocks and temperature have settled as they do in
    // training; then the median round counts.
    std::vector<double> rounds;
    std::vector<std::vector<double>> each(entries.size());
    double total = 0;
    const double wanted = device.is_cuda() ? 2500 : 100;
    for (int round = 0; total < wanted || round < 3; ++round) {
        std::vector<std::unique_ptr<kernels::StreamEvent>> marks;
        const auto mark = [&] {
            marks.push_back(std::make_unique<kernels::StreamEvent>(device));
            marks.back()->record(a.stream());
        };
        mark();
        for (const Entry& entry : entries) {
            for (int64_t i = 0; i < entry.count; ++i) kernels::gemm(a.stream(), entry.product);
            mark();
        }
        const double ms = marks.back()->ms_since(*marks.front());
        total += ms;
        if (total < wanted / 2 && round > 0) continue;
        rounds.push_back(ms);
        for (size_t i = 0; i < entries.size(); ++i)
            each[i].push_back(marks[i + 1]->ms_since(*marks[i]) / static_cast<double>(entries[i].count));
    }
    ProductBound bound;
    bound.ms = median(rounds);
    for (size_t i = 0; i < entries.size(); ++i) {
        const double ms = median(each[i]), count = static_cast<double>(entries[i].count);
        const double flops = flops_of(entries[i].product);
        bound.flops += count * flops;
        bound.table.add({describe(entries[i].product), fmt::to_string(entries[i].count),
                         fmt::format("{:.4f}", ms), fmt::format("{:.3f}", count * ms),
                         fmt::format("{:.1f}", flops / ms / 1e9)});
    }
    bound.table.add({"all", "", "", fmt::format("{:.3f}", bound.ms),
                     fmt::format("{:.1f}", bound.flops / bound.ms / 1e9)});
    return bound;
}

}  // namespace levin::bench
