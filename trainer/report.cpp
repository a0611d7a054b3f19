#include "trainer/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>

#include "kernels/base/file.h"
#include "trainer/config.h"
#include "trainer/report_page.h"

namespace levin {
namespace {

namespace fs = std::filesystem;

constexpr size_t buckets = 1000;  // two points each: more than a wide screen has columns

// JSON text that may stand inside <script>: no "<" can end it early.
std::string quoted(const std::string& text) {
    const std::string json =
        nlohmann::json(text).dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
    std::string safe;
    for (const char c : json) c == '<' ? safe += "\\u003c" : safe += c;
    return safe;
}

std::string number(double value, int digits) {
    return std::isfinite(value) ? fmt::format("{:.{}g}", value, digits) : "null";
}

// One curve at every x axis the page offers: {"step":[..],"tokens":[..],"hours":[..],"value":[..]}; null is
// NaN or inf.
std::string curve(const ReportRun& run, const std::vector<double>& hours, const std::vector<double>& values) {
    // Rows without a value (validation is rare) are no part of the curve.
    std::vector<size_t> rows;
    std::vector<double> present;
    for (size_t i = 0; i < values.size(); ++i)
        if (values[i] != std::numeric_limits<double>::lowest()) {
            rows.push_back(i);
            present.push_back(values[i]);
        }
    std::string step, tokens, hour, value;
    for (const size_t index : decimate(present, buckets)) {
        const size_t i = rows[index];
        const char* comma = step.empty() ? "" : ",";
        step += fmt::format("{}{}", comma, run.rows[i].step);
        tokens += fmt::format("{}{}", comma, run.rows[i].tokens);
        hour += fmt::format("{}{}", comma, number(hours[i], 7));
        value += fmt::format("{}{}", comma, number(present[index], 6));
    }
    return fmt::format("{{\"step\":[{}],\"tokens\":[{}],\"hours\":[{}],\"value\":[{}]}}", step, tokens, hour,
                       value);
}

double median(std::vector<double> values) {
    std::erase_if(values, [](double v) { return !std::isfinite(v); });
    if (values.empty()) return std::nan("");
    const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
    std::nth_element(values.begin(), middle, values.end());
    return *middle;
}

std::string run_json(const ReportRun& run) {
    std::vector<double> hours;
    double time = 0, best = std::nan(""), memory = 0;
    std::vector<double> speed, mfu, tail;
    size_t bad = 0;
    for (const StepMetrics& row : run.rows) {
        if (std::isfinite(row.step_ms)) time += row.step_ms / 3.6e6;
        hours.push_back(time);
        speed.push_back(row.tokens_per_second);
        mfu.push_back(row.mfu);
        if (row.validation_loss) best = std::fmin(best, *row.validation_loss);
        memory = std::fmax(memory, row.peak_memory_gib);
        bad += !std::isfinite(row.loss);
    }
    // The last row's loss is one batch; the mean of the last twentieth says more.
    const size_t last = std::clamp<size_t>(run.rows.size() / 20, 1, 100);
    double sum = 0;
    size_t count = 0;
    for (size_t i = run.rows.size() - std::min(last, run.rows.size()); i < run.rows.size(); ++i)
        if (std::isfinite(run.rows[i].loss)) {
            sum += run.rows[i].loss;
            ++count;
        }
    const bool any = !run.rows.empty();
    std::string text = fmt::format(
        "{{\"name\":{},\"config\":{},\"summary\":{{\"steps\":{},\"tokens\":{},\"hours\":{},\"loss\":{},"
        "\"loss_steps\":{},"
        "\"best_validation\":{},\"tokens_per_second\":{},\"mfu\":{},\"memory\":{},\"bad\":{}}},\"curves\":{{",
        quoted(run.name), quoted(run.config), any ? run.rows.back().step : 0,
        any ? run.rows.back().tokens : 0, number(time, 6),
        number(count ? sum / static_cast<double>(count) : std::nan(""), 6), count, number(best, 6),
        number(median(speed), 5), number(median(mfu), 4), number(memory, 4), bad);
    const auto add = [&](const char* name, auto value_of) {
        std::vector<double> values;
        for (const StepMetrics& row : run.rows) values.push_back(value_of(row));
        text += fmt::format("{}\"{}\":{}", text.back() == '{' ? "" : ",", name, curve(run, hours, values));
    };
    add("loss", [](const StepMetrics& row) { return row.loss; });
    add("validation_loss", [](const StepMetrics& row) {
        return row.validation_loss.value_or(std::numeric_limits<double>::lowest());
    });
    add("learning_rate", [](const StepMetrics& row) { return row.learning_rate; });
    add("grad_norm", [](const StepMetrics& row) { return row.grad_norm; });
    add("tokens_per_second", [](const StepMetrics& row) { return row.tokens_per_second; });
    add("mfu", [](const StepMetrics& row) { return 100 * row.mfu; });
    add("data_wait_ms", [](const StepMetrics& row) { return row.data_wait_ms; });
    add("exposed_comm_ms", [](const StepMetrics& row) {
        return row.exposed_comm_ms.value_or(std::numeric_limits<double>::lowest());
    });
    return text + "}}";
}

std::string read_optional(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::stringstream text;
    if (file.is_open()) text << file.rdbuf();
    return text.str();
}

// run.name of a configuration; reports of foreign or broken files do without it.
std::string name_in(const std::string& config) {
    try {
        return parse_config(config, "config.yaml").run.name;
    } catch (const Error&) {
        return "";
    }
}

}  // namespace

std::vector<size_t> decimate(const std::vector<double>& values, size_t bucket_count) {
    const size_t n = values.size();
    std::vector<size_t> chosen;
    if (n <= 2 * bucket_count) {
        for (size_t i = 0; i < n; ++i) chosen.push_back(i);
        return chosen;
    }
    chosen.push_back(0);
    for (size_t bucket = 0; bucket < bucket_count; ++bucket) {
        const size_t begin = n * bucket / bucket_count, end = n * (bucket + 1) / bucket_count;
        size_t low = end, high = end, odd = end;
        for (size_t i = begin; i < end; ++i) {
            if (!std::isfinite(values[i])) {
                if (odd == end) odd = i;
                continue;
            }
            if (low == end || values[i] < values[low]) low = i;
            if (high == end || values[i] > values[high]) high = i;
        }
        std::vector<size_t> kept = {low, high, odd};
        std::sort(kept.begin(), kept.end());
        for (const size_t i : kept)
            if (i < end && i != chosen.back()) chosen.push_back(i);
    }
    if (chosen.back() != n - 1) chosen.push_back(n - 1);
    return chosen;
}

std::string report_html(const std::vector<ReportRun>& runs) {
    std::string data = "{\"runs\":[";
    for (const ReportRun& run : runs)
        data += fmt::format("{}{}", data.back() == '[' ? "" : ",", run_json(run));
    data += "]}";
    std::string page =
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
        "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
        "<title>levin report</title>\n<style>\n";
    page += report_style;
    page +=
        "</style>\n</head>\n<body>\n<main id=\"page\"></main>\n"
        "<noscript>The curves are drawn by a script in this file; allow it to run.</noscript>\n"
        "<script type=\"application/json\" id=\"data\">";
    page += data;
    page += "</script>\n<script>\n";
    page += report_chart_script;
    page += report_script;
    page += "</script>\n</body>\n</html>\n";
    return page;
}

std::vector<ReportRun> read_runs(const std::vector<std::string>& folders) {
    std::vector<ReportRun> runs;
    for (const std::string& folder : folders) {
        ReportRun run;
        run.config = read_optional(folder + "/config.yaml");
        run.name = name_in(run.config);
        const fs::path path = fs::path(folder).lexically_normal();
        if (run.name.empty())
            run.name = (path.has_filename() ? path : path.parent_path()).filename().string();
        run.rows = read_metrics(folder + "/metrics.jsonl");
        runs.push_back(std::move(run));
    }
    return runs;
}

void write_report(const std::vector<std::string>& folders, const std::string& output) {
    write_text_file(output, report_html(read_runs(folders)));
}

}  // namespace levin
