#include "trainer/metrics.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <string_view>

#include "kernels/base/error.h"
#include "kernels/base/file.h"

namespace levin {
namespace {

constexpr size_t max_pending_bytes = size_t{64} << 20;

struct Field {
    std::string_view name;
    double StepMetrics::*member;
    bool timing;
};
// Missing in a row that has no value.
struct OptionalField {
    std::string_view name;
    std::optional<double> StepMetrics::*member;
    bool timing;
};

constexpr std::array<Field, 8> fields = {{
    {"loss", &StepMetrics::loss, false},
    {"learning_rate", &StepMetrics::learning_rate, false},
    {"grad_norm", &StepMetrics::grad_norm, false},
    {"step_ms", &StepMetrics::step_ms, true},
    {"tokens_per_second", &StepMetrics::tokens_per_second, true},
    {"mfu", &StepMetrics::mfu, true},
    {"data_wait_ms", &StepMetrics::data_wait_ms, true},
    {"peak_memory_gib", &StepMetrics::peak_memory_gib, true},
}};
constexpr std::array<OptionalField, 7> optional_fields = {{
    {"validation_loss", &StepMetrics::validation_loss, false},
    {"comm_ms", &StepMetrics::comm_ms, true},
    {"exposed_comm_ms", &StepMetrics::exposed_comm_ms, true},
    {"exposed_dp_ms", &StepMetrics::exposed_dp_ms, true},
    {"exposed_tp_ms", &StepMetrics::exposed_tp_ms, true},
    {"exposed_cp_ms", &StepMetrics::exposed_cp_ms, true},
    {"exposed_pp_ms", &StepMetrics::exposed_pp_ms, true},
}};

std::string number(double value) { return std::isfinite(value) ? fmt::format("{}", value) : "null"; }

}  // namespace

bool is_timing_field(const std::string& name) {
    for (const Field& field : fields)
        if (field.name == name) return field.timing;
    for (const OptionalField& field : optional_fields)
        if (field.name == name) return field.timing;
    return false;
}

std::string to_json(const StepMetrics& row) {
    std::string text = fmt::format("{{\"step\":{},\"tokens\":{}", row.step, row.tokens);
    const auto add = [&](bool timing) {
        for (const Field& field : fields)
            if (field.timing == timing)
                text += fmt::format(",\"{}\":{}", field.name, number(row.*field.member));
        for (const OptionalField& field : optional_fields)
            if (field.timing == timing && row.*field.member)
                text += fmt::format(",\"{}\":{}", field.name, number(*(row.*field.member)));
    };
    add(false);
    add(true);
    return text + "}";
}

std::optional<StepMetrics> parse_metrics_row(const std::string& line) {
    const auto json = nlohmann::json::parse(line, nullptr, false);
    if (!json.is_object()) return std::nullopt;
    const auto step = json.find("step"), tokens = json.find("tokens");
    if (step == json.end() || !step->is_number_integer()) return std::nullopt;
    StepMetrics row;
    row.step = step->get<int64_t>();
    if (tokens != json.end() && tokens->is_number_integer()) row.tokens = tokens->get<int64_t>();
    const auto read = [](const nlohmann::json& value) {
        return value.is_number() ? value.get<double>() : std::numeric_limits<double>::quiet_NaN();
    };
    for (const Field& field : fields)
        if (const auto found = json.find(field.name); found != json.end()) row.*field.member = read(*found);
    for (const OptionalField& field : optional_fields)
        if (const auto found = json.find(field.name); found != json.end()) row.*field.member = read(*found);
    return row;
}

std::vector<StepMetrics> read_metrics(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    LEVIN_REQUIRE(file.is_open(), "metrics", "{} cannot be opened: {}; give the folder of a run", path,
                  std::strerror(errno));
    std::vector<StepMetrics> rows;
    for (std::string line; std::getline(file, line);)
        if (auto row = parse_metrics_row(line)) rows.push_back(*row);
    return rows;
}

namespace {

// Removes what does not belong before a row for next_step.
void mend(const std::string& path, int64_t next_step) {
    std::ifstream file(path, std::ios::binary);
    if (!file.is_open()) return;
    std::string kept;
    bool changed = false;
    for (std::string line; std::getline(file, line);) {
        changed |= file.eof();  // no line end: torn, or only the line end is missing
        const auto row = parse_metrics_row(line);
        if (row && row->step < next_step) {
            kept += line;
            kept += '\n';
        } else {
            changed = true;
        }
    }
    file.close();
    if (changed) write_text_file(path, kept);
}

}  // namespace

MetricsWriter::MetricsWriter(const std::string& path, int64_t next_step) : path_(path) {
    mend(path, next_step);
    file_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (file_ < 0)
        fail(Fault::input, "metrics", "{} cannot be opened for writing: {}; check folder and permissions",
             path, std::strerror(errno));
    size_ = ::lseek(file_, 0, SEEK_END);
}

MetricsWriter::~MetricsWriter() {
    if (!pending_.empty()) flush();
    ::close(file_);
}

void MetricsWriter::write(const StepMetrics& row) {
    if (pending_.size() < max_pending_bytes) {
        pending_ += to_json(row) + "\n";
        ++pending_count_;
    }
    flush();
}

void MetricsWriter::flush() {
    size_t done = 0;
    while (done < pending_.size()) {
        const ssize_t n = ::write(file_, pending_.data() + done, pending_.size() - done);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            const int error = errno;
            // Half a row must not stay: the next one would be written behind it.
            const bool cut = ::ftruncate(file_, size_) == 0;
            if (!warned_)
                std::fputs(
                    fmt::format(
                        "levin: warning: {} cannot be written: {}; training goes on, rows are kept{}\n",
                        path_, std::strerror(error), cut ? " and written later" : "")
                        .c_str(),
                    stderr);
            warned_ = true;
            return;
        }
        done += static_cast<size_t>(n);
    }
    size_ += static_cast<int64_t>(done);
    pending_.clear();
    pending_count_ = 0;
}

}  // namespace levin
