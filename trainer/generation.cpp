#include "trainer/generation.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>

#include "core/random.h"
#include "model/decoder.h"

namespace levin {

int32_t sample_token(std::span<const double> logits, const SamplingOptions& options, double uniform) {
    const auto best = std::max_element(logits.begin(), logits.end());
    LEVIN_CHECK(std::isfinite(*best), "generate", "the model's logits are not finite");
    if (options.temperature <= 0) return static_cast<int32_t>(best - logits.begin());

    std::vector<int32_t> order(logits.size());
    std::iota(order.begin(), order.end(), 0);
    const auto likelier = [&](int32_t a, int32_t b) {
        const double x = logits[static_cast<size_t>(a)], y = logits[static_cast<size_t>(b)];
        return x != y ? x > y : a < b;
    };
    size_t kept = order.size();
    if (options.top_k > 0) kept = std::min(kept, static_cast<size_t>(options.top_k));
    if (kept < order.size()) {
        std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(kept), order.end(),
                          likelier);
        order.resize(kept);
    } else {
        std::sort(order.begin(), order.end(), likelier);
    }
    std::vector<double> weights(kept);
    double total = 0;
    for (size_t i = 0; i < kept; ++i)
        total += weights[i] = std::exp((logits[static_cast<size_t>(order[i])] - *best) / options.temperature);
    if (options.top_p < 1) {
        double sum = 0;
        size_t i = 0;
        while (i < kept && sum < options.top_p * total) sum += weights[i++];
        kept = std::max<size_t>(1, i);
        total = sum;
    }
    double rest = uniform * total;
    for (size_t i = 0; i + 1 < kept; ++i) {
        rest -= weights[i];
        if (rest < 0) return order[i];
    }
    return order[kept - 1];
}

Tensor feed(const LanguageModel& model, DecodeState& state, std::span<const int32_t> ids) {
    NoGradient off;
    check_tokens(model, ids);
    const auto count = static_cast<int64_t>(ids.size());
    const Tensor input = Tensor::from_host({count}, DType::i32, ids.data(), ids.size(), model.device());
    const Tensor hidden = model.hidden(input, {.batch = 1, .length = count}, &state).value();
    return model.logits(Variable(hidden.narrow(0, count - 1, 1)));
}

std::vector<int32_t> generate(const LanguageModel& model, std::span<const int32_t> prompt,
                              const SamplingOptions& options, const std::function<bool(int32_t)>& on_token) {
    LEVIN_REQUIRE(!prompt.empty(), "generate", "the prompt is empty: give at least one token");
    DecodeState state = model.new_state();
    Tensor logits;
    while (!prompt.empty()) {
        const size_t length = std::min(prompt.size(), static_cast<size_t>(options.prefill_chunk));
        logits = feed(model, state, prompt.first(length));
        prompt = prompt.subspan(length);
    }
    // On a GPU, where launching a kernel costs as much as running it for one token.
    std::optional<Decoder> decoder;
    if (model.device().is_cuda() && Decoder::supports(model)) {
        decoder.emplace(model, 1);
        decoder->set_state(state);
    }
    const auto next_logits = [&](int32_t token) {
        if (!decoder) return feed(model, state, std::span<const int32_t>(&token, 1));
        decoder->set_tokens(std::span<const int32_t>(&token, 1));
        decoder->step();
        return decoder->logits();
    };
    const Random random(options.seed, "sample");
    std::vector<int32_t> generated;
    while (static_cast<int64_t>(generated.size()) < options.max_tokens) {
        const int32_t token = sample_token(logits.to_vector(), options, random.uniform(generated.size()));
        if (std::find(options.stop.begin(), options.stop.end(), token) != options.stop.end()) break;
        generated.push_back(token);
        if (on_token && !on_token(token)) break;
        if (static_cast<int64_t>(generated.size()) < options.max_tokens) logits = next_logits(token);
    }
    return generated;
}

}  // namespace levin
