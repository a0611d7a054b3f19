#include "trainer/progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace levin {
namespace {

constexpr int plain_width = 1000;  // plain lines are never cut
constexpr std::chrono::milliseconds redraw_interval{
    100};  // a terminal over a slow line must not slow training

int terminal_width(std::FILE* output) {
    winsize size{};
    if (::ioctl(::fileno(output), TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
    return size.ws_col;
}

}  // namespace

std::string format_duration(double seconds) {
    if (!std::isfinite(seconds) || seconds < 0 || seconds > 1e9) return "?";
    const auto total = static_cast<int64_t>(std::llround(seconds));
    if (total < 60) return fmt::format("{}s", total);
    if (total < 3600) return fmt::format("{}m{:02}s", total / 60, total % 60);
    if (total < 24 * 3600) return fmt::format("{}h{:02}m", total / 3600, total / 60 % 60);
    return fmt::format("{}d{:02}h", total / 86400, total / 3600 % 24);
}

std::string format_count(double value) {
    if (!std::isfinite(value)) return "?";
    const char* const units[] = {"", "K", "M", "G", "T"};
    int unit = 0;
    while (std::abs(value) >= 999.5 && unit < 4) {
        value /= 1000;
        ++unit;
    }
    const int digits = unit == 0 ? 0 : value < 9.995 ? 2 : value < 99.95 ? 1 : 0;
    return fmt::format("{:.{}f}{}", value, digits, units[unit]);
}

std::string format_progress(const StepMetrics& row, int64_t total_steps, double seconds_left, int width) {
    const std::vector<std::string> parts = {
        fmt::format("step {}/{}", row.step, total_steps),
        fmt::format("loss {:.4f}", row.loss),
        fmt::format("{} tok/s", format_count(row.tokens_per_second)),
        fmt::format("left {}", format_duration(seconds_left)),
        fmt::format("MFU {:.1f}%", 100 * row.mfu),
        fmt::format("lr {:.2e}", row.learning_rate),
        fmt::format("norm {:.3g}", row.grad_norm),
    };
    std::string line;
    for (const std::string& part : parts) {
        const std::string longer = line.empty() ? part : line + "  " + part;
        if (static_cast<int>(longer.size()) > width) break;
        line = longer;
    }
    return line.empty() ? parts[0].substr(0, static_cast<size_t>(std::max(0, width))) : line;
}

Progress::Progress(int64_t total_steps, int64_t done_steps, int64_t log_every, std::FILE* output, bool redraw)
    : total_steps_(total_steps),
      first_step_(done_steps),
      log_every_(std::max<int64_t>(1, log_every)),
      output_(output),
      terminal_(redraw && ::isatty(::fileno(output)) == 1),
      last_update_(std::chrono::steady_clock::now()) {}

Progress::~Progress() { finish(); }

void Progress::update(const StepMetrics& row, int64_t steps_done) {
    const auto now = std::chrono::steady_clock::now();
    const double seconds = std::chrono::duration<double>(now - last_update_).count();
    last_update_ = now;
    // The first step of a process is slow (buffers, threads): it counts only until a second one is known.
    const int64_t seen = steps_done - first_step_;
    if (seen <= 2) {
        seconds_per_step_ = seconds;
    } else {
        seconds_per_step_ +=
            (seconds - seconds_per_step_) / static_cast<double>(std::min<int64_t>(seen - 1, 50));
    }
    const double left = seconds_per_step_ * static_cast<double>(total_steps_ - steps_done);
    const bool last = steps_done >= total_steps_;
    if (terminal_) {
        line_ = format_progress(row, total_steps_, left, terminal_width(output_) - 1);
        if (last || !drawn_ || now - last_draw_ >= redraw_interval) draw(line_);
    } else if (last || seen == 1 || steps_done % log_every_ == 0) {
        std::fputs((format_progress(row, total_steps_, left, plain_width) + "\n").c_str(), output_);
        std::fflush(output_);
    }
}

void Progress::draw(const std::string& line) {
    std::fputs(("\r" + line + "\x1b[K").c_str(), output_);  // erase what a longer line left
    std::fflush(output_);
    last_draw_ = std::chrono::steady_clock::now();
    drawn_ = true;
}

void Progress::message(const std::string& text) {
    if (!terminal_ || !drawn_) {
        std::fputs((text + "\n").c_str(), output_);
        std::fflush(output_);
        return;
    }
    std::fputs(("\r\x1b[K" + text + "\n").c_str(), output_);
    draw(line_);
}

void Progress::finish() {
    if (!drawn_) return;
    draw(line_);
    std::fputs("\n", output_);
    std::fflush(output_);
    drawn_ = false;
}

}  // namespace levin
