#include "model/slopes.h"

#include <bit>
#include <cmath>

namespace levin {

namespace {

std::vector<float> alibi(int64_t heads) {
    std::vector<float> slopes;
    const auto below = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(heads)));
    for (int64_t j = 0; j < below; ++j)
        slopes.push_back(
            static_cast<float>(std::exp2(-8.0 * static_cast<double>(j + 1) / static_cast<double>(below))));
    if (below < heads) {
        const std::vector<float> above = alibi(2 * below);
        for (size_t j = 0; slopes.size() < static_cast<size_t>(heads); j += 2) slopes.push_back(above[j]);
    }
    return slopes;
}

}  // namespace

std::vector<float> decay_slopes(const ModelConfig& config, int64_t layer) {
    const auto heads = static_cast<size_t>(config.num_heads);
    const auto i = static_cast<double>(layer), layers = static_cast<double>(config.num_layers);
    switch (config.decay) {
        case Decay::none:
            return std::vector<float>(heads, 0.0f);
        case Decay::alibi_no_temperature:
            return alibi(config.num_heads);
        case Decay::paper: {
            std::vector<float> slopes;
            for (size_t j = 0; j < heads; ++j)
                slopes.push_back(static_cast<float>(8.0 * static_cast<double>(j) /
                                                    static_cast<double>(heads) * (1 - i / layers)));
            return slopes;
        }
        case Decay::alibi:
            break;
    }
    // One layer would divide by zero: it counts as the first of many.
    const auto factor = static_cast<float>((layers > 1 ? 1 - i / (layers - 1) : 1.0) + 1e-5);
    std::vector<float> slopes = alibi(config.num_heads);
    for (float& slope : slopes) slope *= factor;
    return slopes;
}

}  // namespace levin
