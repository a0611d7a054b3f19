#include "model/sharding.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

namespace levin {

Shard shard_of(const ParameterSpec& spec, int64_t tp, int64_t rank) {
    Shard shard{.shape = spec.shape, .axis = spec.sharding == Sharding::columns ? 1 : 0, .ranges = {}};
    int64_t& extent = shard.shape[static_cast<size_t>(shard.axis)];
    if (tp == 1 || spec.sharding == Sharding::replicated) {
        shard.axis = 0;
        shard.ranges = {{0, 0, spec.shape[0]}};
        return shard;
    }
    std::vector<int64_t> segments{extent};
    if (spec.sharding == Sharding::rows && !spec.segments.empty()) segments = spec.segments;
    int64_t global = 0, local = 0;
    for (const int64_t segment : segments) {
        int64_t each = segment / tp;
        if (segment % tp != 0) {
            LEVIN_CHECK(segments.size() == 1, "model", "{} has a segment of {}, which {} ranks do not divide",
                        spec.name, segment, tp);
            each = ((segment + tp - 1) / tp + 7) / 8 * 8;
        }
        const int64_t begin = std::min(rank * each, segment), end = std::min(begin + each, segment);
        if (end > begin) shard.ranges.push_back({global + begin, local, end - begin});
        global += segment;
        local += each;
    }
    extent = local;
    return shard;
}

std::vector<Stretch> stretches_of(const ParameterSpec& spec, const Shard& shard, int64_t start,
                                  int64_t count) {
    const int64_t columns = shard.shape.size() == 2 ? shard.shape[1] : 1;
    std::vector<Stretch> list;
    for (const Shard::Range& range : shard.ranges) {
        if (shard.axis == 1) {
            LEVIN_CHECK(range.local == 0 && range.count == columns, "model", "{} has {} ranges of columns",
                        spec.name, shard.ranges.size());
            const int64_t row = start / columns, column = start % columns, row_step = spec.shape[1];
            list.push_back(
                {0, count, row * row_step + range.global + column, column, columns, row_step - columns});
            continue;
        }
        const int64_t begin = std::max(start, range.local * columns),
                      end = std::min(start + count, (range.local + range.count) * columns);
        if (begin < end)
            list.push_back(
                {begin - start, end - start, begin + (range.global - range.local) * columns, 0, columns, 0});
    }
    return list;
}

Tensor take_shard(const Tensor& whole, const Shard& shard, DType dtype, const Device& device) {
    Tensor part = Tensor::zeros(shard.shape, dtype, device);
    for (const Shard::Range& range : shard.ranges)
        part.narrow(shard.axis, range.local, range.count)
            .copy_from(whole.narrow(shard.axis, range.global, range.count));
    return part;
}

void put_shard(const Tensor& part, const Shard& shard, Tensor whole) {
    for (const Shard::Range& range : shard.ranges)
        whole.narrow(shard.axis, range.global, range.count)
            .copy_from(part.narrow(shard.axis, range.local, range.count));
}

void set_initial_part(const ModelConfig& config, const ParameterSpec& spec, uint64_t seed, const Shard& shard,
                      Tensor part) {
    if (!shard.is_whole(spec)) part.fill(0);  // what is padding stays so
    for (const Shard::Range& range : shard.ranges)
        set_initial_value(config, spec, seed, shard.axis, range.global,
                          part.narrow(shard.axis, range.local, range.count));
}

StageLayers layers_of_stage(const ModelConfig& config, int64_t stages, int64_t stage) {
    const int64_t layers = config.num_layers, others = stages - 1;
    if (others == 0) return {0, layers};
    const auto table = static_cast<double>(config.vocab_size * config.hidden_size);
    const double of_layers =
        static_cast<double>(config.parameter_count()) - table * (config.tie_embeddings ? 1 : 2);
    const double head = table * static_cast<double>(layers) / of_layers;  // in layers
    const double equal = (static_cast<double>(layers) + head) / static_cast<double>(stages);
    const int64_t on_last = std::clamp<int64_t>(std::llround(equal - head), 1, layers - others);
    const int64_t rest = layers - on_last;
    if (stage == others) return {rest, layers};
    return {rest * stage / others, rest * (stage + 1) / others};
}

bool holds_parameter(const ModelConfig& config, const ParameterSpec& spec, int64_t pp, int64_t virtual_stages,
                     int64_t pp_rank) {
    const int64_t stages = pp * virtual_stages;
    if (spec.layer >= 0) {
        for (int64_t stage = pp_rank; stage < stages; stage += pp) {
            const StageLayers layers = layers_of_stage(config, stages, stage);
            if (spec.layer >= layers.first && spec.layer < layers.last) return true;
        }
        return false;
    }
    const bool first = pp_rank == 0, last = pp_rank == pp - 1;
    if (spec.name == "embedding") return first || (last && config.tie_embeddings);
    if (spec.name == "position_embedding") return first;
    return last;
}

namespace {

// The divisors of `number` next to `wanted`: "2 and 4".
std::string near_divisors(int64_t number, int64_t wanted) {
    int64_t below = std::min(wanted, number), above = wanted;
    while (number % below != 0) --below;
    while (above < number && number % above != 0) ++above;
    return above > number || above == below ? fmt::format("{}", below)
                                            : fmt::format("{} and {}", below, above);
}

}  // namespace

void validate_layout(const ModelConfig& config, const Layout& layout, int64_t virtual_stages) {
    const int64_t tp = layout.tp;
    int64_t both = std::gcd(config.num_heads, config.glu_width());
    bool softmax = false;
    for (int64_t i = 0; i < config.num_layers; ++i) softmax |= config.mixer_of(i) == Mixer::softmax;
    if (softmax) both = std::gcd(both, config.kv_heads());
    const auto divided = [&](const char* what, int64_t number) {
        LEVIN_REQUIRE(number % tp == 0, "parallel",
                      "parallel.tp is {} and does not divide {} = {}: every rank needs as many. Nearest that "
                      "divide all of the model: parallel.tp={}",
                      tp, what, number, near_divisors(both, tp));
    };
    divided("model.num_heads", config.num_heads);
    if (softmax) divided("the key heads (model.num_kv_heads)", config.kv_heads());
    divided("the width of the GLU (model.glu_dim)", config.glu_width());
    LEVIN_REQUIRE(
        virtual_stages == 1 || layout.pp > 1, "parallel",
        "parallel.virtual_stages is {} with parallel.pp 1: there is no pipeline to interleave; set it to "
        "1, or parallel.pp to 2 or more",
        virtual_stages);
    LEVIN_REQUIRE(
        layout.pp * virtual_stages <= config.num_layers, "parallel",
        "parallel.pp {} x parallel.virtual_stages {} = {} stages, but model.num_layers is {}: every "
        "stage needs a layer. Nearest that works: parallel.pp={} parallel.virtual_stages={}",
        layout.pp, virtual_stages, layout.pp * virtual_stages, config.num_layers,
        std::min(layout.pp, config.num_layers),
        std::max<int64_t>(1, config.num_layers / std::min(layout.pp, config.num_layers)));
}

}  // namespace levin
