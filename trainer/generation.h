// Text from a model: prefill of the prompt in pieces, then the recurrent form, one token at a time in
// constant time and memory (lightning layers).
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "model/language_model.h"

namespace levin {

struct SamplingOptions {
    double temperature = 1;  // 0: the most likely token
    int64_t top_k = 0;       // only the k most likely; 0: all
    double top_p = 1;        // only the smallest set of this probability
    uint64_t seed = 1234;
    int64_t max_tokens = 256;
    std::vector<int32_t> stop = {};  // ends after one of these (it is not reported)
    int64_t prefill_chunk = 2048;
};

// The next token from logits [vocab]. `uniform` in [0, 1) decides; temperature 0 ignores it. Ties go to the
// lower id.
int32_t sample_token(std::span<const double> logits, const SamplingOptions& options, double uniform);

// Runs `prompt` (at least one token), then samples. on_token(id) returns false to end. Returns what was
// generated. The token at place i depends on (seed, i) and the logits only.
std::vector<int32_t> generate(const LanguageModel& model, std::span<const int32_t> prompt,
                              const SamplingOptions& options,
                              const std::function<bool(int32_t)>& on_token = {});

// Feeds ids (one sequence) and returns the logits [vocab] of the last one.
Tensor feed(const LanguageModel& model, DecodeState& state, std::span<const int32_t> ids);

}  // namespace levin
