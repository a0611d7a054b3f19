// The progress of a run on the terminal: one line redrawn in place, or plain lines where the output is no
// terminal.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>

#include "trainer/metrics.h"

namespace levin {

// "45s", "3m20s", "2h05m", "4d03h"
std::string format_duration(double seconds);
// Three significant digits: "950", "12.3K", "1.25M"
std::string format_count(double value);
// "step 120/1000  loss 2.3456  12.3K tok/s  left 3m20s  MFU 41.2%  lr 3.00e-04  norm 0.812", the parts that
// matter least left out until it fits `width` columns.
std::string format_progress(const StepMetrics& row, int64_t total_steps, double seconds_left, int width);

class Progress {
public:
    // `done_steps` are behind the run already (resume). Plain lines come every log_every steps and for the
    // last step. `redraw` false: plain lines also where the output is a terminal (under mpirun it always
    // seems to be one).
    Progress(int64_t total_steps, int64_t done_steps, int64_t log_every, std::FILE* output = stdout,
             bool redraw = true);
    ~Progress();
    Progress(const Progress&) = delete;
    Progress& operator=(const Progress&) = delete;

    // `steps_done` counts finished steps, row.step as written in the metrics.
    void update(const StepMetrics& row, int64_t steps_done);
    // A line of its own, above the progress line.
    void message(const std::string& text);
    // Leaves the last state on screen and goes to a new line.
    void finish();

private:
    void draw(const std::string& line);

    int64_t total_steps_, first_step_, log_every_;
    std::FILE* output_;
    bool terminal_, drawn_ = false;
    double seconds_per_step_ = 0;  // running mean, all waits included
    std::chrono::steady_clock::time_point last_update_, last_draw_;
    std::string line_;  // the last one on screen
};

}  // namespace levin
