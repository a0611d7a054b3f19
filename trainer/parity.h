// Comparison with the published models' numbers: logits, loss, every gradient, decoding, and a training
// trajectory.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kernels/base/dtype.h"
#include "kernels/base/stream.h"
#include "parallel/communicator.h"

namespace levin {

struct ParityRow {
    std::string name;
    double error = 0;   // ||a - b|| / ||b||, or the largest relative difference of a series
    double bound = -1;  // negative: printed only
    std::string note;   // "13 of 13 tokens equal"
    bool holds() const { return bound < 0 || error <= bound; }
};

// How the model is divided over the ranks of a job; data parallelism takes what the others leave.
struct ParityLayout {
    int64_t tp = 1, cp = 1, pp = 1, virtual_stages = 1, zero = 0;
    bool sequence_scatter = false;
};

// Compares levin with `folder`: config.json, model.safetensors, golden.safetensors, and recipe.json for a
// trajectory (see tests/golden/README.md). Bounds: SPEC's for f64 and f32 on the CPU, wider for f32 on a GPU
// (another summation order), none for bf16. Throws Error(input) when the folder lacks something.
// Collective over `ranks`; the same rows on all of them. Decoding is compared on one rank and with tensor
// parallelism alone, else a row says that it is left out.
std::vector<ParityRow> run_parity(const std::string& folder, DType dtype, const Device& device,
                                  const std::shared_ptr<Communicator>& ranks,
                                  const ParityLayout& layout = {});

}  // namespace levin
