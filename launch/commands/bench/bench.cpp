#include "launch/commands/bench/bench.h"

#include <fmt/core.h>
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>

#include "core/random.h"
#include "kernels/device_memory.h"
#include "launch/commands/commands.h"
#include "launch/commands/options.h"
#include "launch/commands/values.h"

namespace levin {

namespace bench {

void Table::print(bool json) const {
    if (json) {
        for (const auto& row : rows_) {
            nlohmann::ordered_json object;
            for (size_t i = 0; i < row.size(); ++i) {
                // Numbers stay numbers.
                const auto value = nlohmann::json::parse(row[i], nullptr, false);
                object[columns_[i]] = value.is_number() ? value : nlohmann::json(row[i]);
            }
            fmt::print("{}\n", object.dump());
        }
        return;
    }
    std::vector<size_t> widths;
    for (size_t i = 0; i < columns_.size(); ++i) {
        size_t width = columns_[i].size();
        for (const auto& row : rows_) width = std::max(width, row[i].size());
        widths.push_back(width);
    }
    const auto line = [&](const std::vector<std::string>& cells) {
        for (size_t i = 0; i < cells.size(); ++i)
            fmt::print("{:>{}}{}", cells[i], widths[i], i + 1 < cells.size() ? "  " : "\n");
    };
    line(columns_);
    for (const auto& row : rows_) line(row);
}

double median_seconds(const Stream& stream, const std::function<void()>& run, int repeats, double seconds) {
    using Clock = std::chrono::steady_clock;
    std::vector<double> times;
    double total = 0;
    for (int i = -1; i < repeats || (total < seconds && i < 1000); ++i) {
        const auto start = Clock::now();
        run();
        kernels::synchronize(stream);
        const double time = std::chrono::duration<double>(Clock::now() - start).count();
        if (i < 0) continue;
        times.push_back(time);
        total += time;
    }
    std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2),
                     times.end());
    return times[times.size() / 2];
}

Tensor random_values(const Shape& shape, DType dtype, const Device& device) {
    Tensor values = Tensor::empty(shape, dtype, device);
    const int64_t count = values.count();
    // An odd length, so that the rows of a matrix do not repeat each other.
    Tensor piece = Tensor::empty({std::min<int64_t>(count, (1 << 20) + 7)}, dtype, device);
    fill_normal(piece, Random(1, "values"), 1);
    const Tensor flat = values.view({count});
    for (int64_t start = 0; start < count; start += piece.count()) {
        const int64_t length = std::min(piece.count(), count - start);
        flat.narrow(0, start, length).copy_from(piece.narrow(0, 0, length));
    }
    return values;
}

void add_common(CLI::App& command, Common& common) {
    command.add_option("--device", common.device, "cpu or cuda")->capture_default_str();
    command.add_option("--dtype", common.dtype, "f64, f32 or bf16")->capture_default_str();
    command.add_option("--threads", common.threads, "0: all cores")
        ->capture_default_str()
        ->check(not_negative());
    command.add_flag("--json", common.json, "One JSON object per row");
}

Device prepare(const Common& common) {
    if (common.threads > 0) omp_set_num_threads(static_cast<int>(common.threads));
    parse_float_type(common.dtype);
    return parse_device(common.device);
}

}  // namespace bench

void add_bench_command(CLI::App& app) {
    CLI::App* command =
        app.add_subcommand("bench", "Measure this machine: attention, gemm, step, data, decode, comm");
    command->require_subcommand(1);
    command->footer("Example: levin bench step configs/quickstart.yaml");
    bench::add_attention(*command);
    bench::add_gemm(*command);
    bench::add_step(*command);
    bench::add_data(*command);
    bench::add_decode(*command);
    bench::add_comm(*command);
}

}  // namespace levin
