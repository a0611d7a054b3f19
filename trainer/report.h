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

// Which values of a long curve to draw, as ascending indices: all of them up to 2 * buckets; else of each of
// `buckets` equal stretches the lowest, the highest and one that is not finite, so that no spike and no NaN
// is lost; the first and the last value always.
std::vector<size_t> decimate(const std::vector<double>& values, size_t buckets);

// The page; several runs are drawn over each other. Any text may be in names and configurations.
std::string report_html(const std::vector<ReportRun>& runs);

// Reads metrics.jsonl and config.yaml of each run folder. Throws Error(input) for a folder without
// metrics.jsonl.
std::vector<ReportRun> read_runs(const std::vector<std::string>& folders);

// Writes the page of these run folders, through a temporary file. Throws Error(internal) when it cannot be
// written.
void write_report(const std::vector<std::string>& folders, const std::string& output);

}  // namespace levin
