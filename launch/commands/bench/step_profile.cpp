#include "launch/commands/bench/step_profile.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "kernels/decode.h"
#include "launch/commands/bench/step_products.h"

namespace levin::bench {

namespace {

std::string describe(const kernels::DecodeLinear& d) {
    constexpr const char* kInputs[] = {"", ", norm", ", gated norm"};
    return fmt::format("decode_linear {} x {} x {}{}{}", d.batch, d.glu ? 2 * d.outputs : d.outputs, d.width,
                       kInputs[static_cast<int>(d.input)], d.glu ? ", gated" : "");
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

}  // namespace levin::bench
