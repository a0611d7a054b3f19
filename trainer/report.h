// report.html: one self-contained page of a run's curves, opened from disk, nothing loaded from elsewhere.
#pragma once

#include <string>
#include <vector>

#include "trainer/metrics.h"

namespace levin {

struct ReportRun {
    std::string name;
    std::string config;  // config.yaml as text, may be empty
    std::vector<StepMetrics> rows;
};

// Points of one curve. Where there are more than about 2 * `buckets`, each of `buckets` equal stretches of rows keeps
// its lowest, highest and one non-finite value (if any), so that no spike, no NaN and no end is lost.
std::vector<size_t> decimate(const std::vector<double>& values, size_t buckets);

// The page; several runs are drawn over each other.
std::string report_html(const std::vector<ReportRun>& runs);

// Reads metrics.jsonl and config.yaml of each run folder. Throws Error(input) for a folder without metrics.jsonl.
std::vector<ReportRun> read_runs(const std::vector<std::string>& folders);
// Writes the page (through a temporary file). Throws Error(internal) when it cannot be written.
void write_report(const std::vector<std::string>& folders, const std::string& output);

}  // namespace levin
