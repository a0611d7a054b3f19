// metrics.jsonl: one JSON object per training step, written and flushed as the step ends.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace levin {

struct StepMetrics {
    int64_t step = 0;
    int64_t tokens = 0;  // trained on up to and including this step, over all ranks
    double loss = 0;     // mean cross-entropy per token, in nats
    double learning_rate = 0;
    double grad_norm = 0;  // L2, before clipping
    std::optional<double> validation_loss;
    // Timing: differs from run to run. Everything above is equal to the bit in an interrupted and resumed
    // run.
    double step_ms = 0;
    double tokens_per_second = 0;
    double mfu = 0;  // share of the device's peak, 0 .. 1
    double data_wait_ms = 0;
    double peak_memory_gib = 0;
    // Several ranks, means over them: communication under way, and the part of the step that waited for it
    // (parallel/communication_meter.h); the latter also for each axis of the layout.
    std::optional<double> comm_ms, exposed_comm_ms;
    std::optional<double> exposed_dp_ms, exposed_tp_ms, exposed_cp_ms, exposed_pp_ms;
};

// Is this field of a row measured time or memory (step_ms and what follows it)?
bool is_timing_field(const std::string& name);

// A row without line end. Numbers have the fewest digits that read back to the same double; NaN and infinity,
// which JSON lacks, are null.
std::string to_json(const StepMetrics& row);
// Inverse of to_json; null is NaN, unknown fields are ignored. nullopt when `line` is no such row.
std::optional<StepMetrics> parse_metrics_row(const std::string& line);

// All readable rows in file order. Throws Error(input) when there is no such file.
std::vector<StepMetrics> read_metrics(const std::string& path);

class MetricsWriter {
public:
    // Opens or creates the file to go on with a row for `next_step`: a torn last row, unreadable rows and
    // rows with step >= next_step (work lost since the checkpoint) are removed first. Throws Error(internal)
    // when the file cannot be opened or mended.
    MetricsWriter(const std::string& path, int64_t next_step);
    ~MetricsWriter();
    MetricsWriter(const MetricsWriter&) = delete;
    MetricsWriter& operator=(const MetricsWriter&) = delete;

    // Appends one row. When it cannot be written (full disk), warns once, keeps the row and tries again with
    // the next one; never throws for it.
    void write(const StepMetrics& row);
    // Rows not yet in the file.
    size_t pending_rows() const { return pending_count_; }

private:
    void flush();

    std::string path_;
    int file_ = -1;
    int64_t size_ = 0;  // bytes of whole rows in the file
    std::string pending_;
    size_t pending_count_ = 0;
    bool warned_ = false;
};

}  // namespace levin
