// levin bench: what the kernels, a training step, the data path and decoding reach on this machine.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace levin::bench {

// A table of results, printed with aligned columns or as JSON (one object per row).
class Table {
public:
    explicit Table(std::vector<std::string> columns) : columns_(std::move(columns)) {}
    void add(std::vector<std::string> cells) { rows_.push_back(std::move(cells)); }
    void print(bool json) const;

private:
    std::vector<std::string> columns_;
    std::vector<std::vector<std::string>> rows_;
};

// Median seconds of `run` after a warm-up, over at least `repeats` runs and about `seconds` in all; the
// device has finished at each reading.
double median_seconds(const Stream& stream, const std::function<void()>& run, int repeats = 5,
                      double seconds = 0.5);

// Random values on the device: a short random piece over and over, for matrices too large to draw on the
// host.
Tensor random_values(const Shape& shape, DType dtype, const Device& device);

// Options all benchmarks take.
struct Common {
    std::string device = "cpu", dtype = "f32";
    int64_t threads = 0;
    bool json = false;
};
void add_common(CLI::App& command, Common& common);
// Sets the number of threads, checks the device.
Device prepare(const Common& common);

void add_attention(CLI::App& bench);
void add_gemm(CLI::App& bench);
void add_step(CLI::App& bench);
void add_data(CLI::App& bench);
void add_decode(CLI::App& bench);
void add_comm(CLI::App& bench);

}  // namespace levin::bench
