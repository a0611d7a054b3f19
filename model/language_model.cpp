#include "model/language_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "model/slopes.h"
#include "parallel/tensor_parallel/ops.h"

namespace levin {

LanguageModel::LanguageModel(const ModelConfig& config, DType dtype, const Device& device,
                             std::shared_ptr<const Mesh> mesh, int64_t virtual_stages,
                             const TensorParallelOptions& options)
    : config_(config), dtype_(dtype), device_(device), mesh_(std::move(mesh)) {
    config.validate();
    const Layout layout = mesh_ ? mesh_->layout() : Layout{};
    const Coordinates place = mesh_ ? mesh_->place() : Coordinates{.pp = 0, .dp = 0, .cp = 0, .tp = 0};
    validate_layout(config, layout, virtual_stages);
    stages_ = layout.pp * virtual_stages;
    if (layout.tp > 1)
        tp_ = {.ranks = mesh_->tp(),
               .scatter = options.sequence_scatter,
               .chunks = options.overlap_chunks,
               .least_bytes = options.least_chunk_bytes,
               .row_bytes = config.hidden_size * static_cast<int64_t>(size_of(dtype))};
    two_batches_ = tp_ && options.two_batches && !options.sequence_scatter;
    MemoryScope scope(MemoryCategory::parameters);
    for (ParameterSpec& spec : parameter_table(config)) {
        if (!holds_parameter(config, spec, layout.pp, virtual_stages, place.pp)) continue;
        index_[spec.name] = parameters_.size();
        const DType type = spec.keep_accumulator ? accumulator_of(dtype) : dtype;
        Shard shard = shard_of(spec, layout.tp, place.tp);
        Variable variable(Tensor::empty(shard.shape, type, device), true);
        const bool copy = spec.name == "embedding" && place.pp > 0;
        const bool counted = !copy && (place.tp == 0 || spec.sharding != Sharding::replicated);
        if (spec.name == "embedding" || spec.name == "head") first_row_ = place.tp * shard.shape[0];
        const bool partial = tp_.scatter && spec.between_blocks;
        parameters_.push_back({std::move(spec), std::move(variable), std::move(shard), counted, partial});
    }
    embedding_ = parameter("embedding");
    position_embedding_ = parameter("position_embedding");
    head_ = config.tie_embeddings ? embedding_ : parameter("head");
    final_norm_ = {parameter("final_norm"), parameter("final_norm_bias")};
    for (int64_t i = 0; i < config.num_layers; ++i) {
        bool here = false;
        for (int64_t stage = place.pp; stage < stages_; stage += layout.pp) {
            const StageLayers layers = layers_of_stage(config, stages_, stage);
            here |= i >= layers.first && i < layers.last;
        }
        if (!here) continue;
        auto named = [&](const std::string& name) { return parameter(fmt::format("layers.{}.{}", i, name)); };
        auto norm = [&](const std::string& name) {
            return NormParameters{named(name), named(name + "_bias")};
        };
        Layer layer;
        layer.index = i;
        layer.tp = tp_;
        if (layout.cp > 1) layer.cp = mesh_->cp();
        layer.heads = config.num_heads / layout.tp;
        layer.kv_heads = config.kv_heads() / layout.tp;
        layer.glu_width = config.glu_width() / layout.tp;
        layer.attention_norm = norm("attention_norm");
        layer.inner_norm = norm("attention.norm");
        layer.glu_norm = norm("glu_norm");
        const bool lightning = config.mixer_of(i) == Mixer::lightning;
        const std::string in =
            lightning && config.gate == Gate::multiply ? "attention.qkvu" : "attention.qkv";
        layer.in = named(in);
        layer.in_bias = named(in + "_bias");
        layer.gate_down = named("attention.gate_down");
        layer.gate_down_bias = named("attention.gate_down_bias");
        layer.gate_up = named("attention.gate_up");
        layer.gate_up_bias = named("attention.gate_up_bias");
        layer.theta = named("attention.theta");
        layer.out = named("attention.out");
        layer.out_bias = named("attention.out_bias");
        layer.glu_in = named("glu.in");
        layer.glu_in_bias = named("glu.in_bias");
        layer.glu_out = named("glu.out");
        layer.glu_out_bias = named("glu.out_bias");
        if (lightning) {
            const std::vector<float> slopes = decay_slopes(config, i);
            layer.slopes = Tensor::from({config.num_heads}, slopes, device)
                               .narrow(0, place.tp * layer.heads, layer.heads);
            layer.steepest = *std::max_element(slopes.begin(), slopes.end());
        }
        layers_.push_back(std::move(layer));
    }
}

Variable LanguageModel::parameter(const std::string& name) const {
    const auto found = index_.find(name);
    return found == index_.end() ? Variable{} : parameters_[found->second].variable;
}

void LanguageModel::initialize(uint64_t seed) {
    for (Parameter& parameter : parameters_)
        set_initial_part(config_, parameter.spec, seed, parameter.shard, parameter.variable.value());
}

void LanguageModel::load(const std::map<std::string, Tensor>& values) {
    for (Parameter& parameter : parameters_) {
        const auto found = values.find(parameter.spec.name);
        LEVIN_REQUIRE(found != values.end(), "model", "no values for parameter {}", parameter.spec.name);
        LEVIN_REQUIRE(found->second.shape() == parameter.spec.shape, "model",
                      "parameter {} should have shape {}, the file has {}", parameter.spec.name,
                      to_string(parameter.spec.shape), to_string(found->second.shape()));
        Tensor value = parameter.variable.value();
        value.copy_from(take_shard(found->second, parameter.shard, value.dtype(), device_));
    }
}

namespace {

std::vector<Residual> split_rows(const Residual& stream, const std::vector<RowSlice>& slices) {
    std::vector<int64_t> rows;
    for (const RowSlice& slice : slices) rows.push_back(slice.rows);
    std::vector<Residual> parts;
    for (const Variable& h : ops::split_rows(stream.h, rows)) parts.push_back({h, {}});
    if (stream.branch.defined()) {
        const std::vector<Variable> branches = ops::split_rows(stream.branch.get(), rows);
        for (size_t i = 0; i < parts.size(); ++i) parts[i].branch = branches[i];
    }
    return parts;
}

}  // namespace

Residual LanguageModel::recompute_layer(const Layer& layer, const Residual& stream,
                                        const std::shared_ptr<const LayerSlices>& slices) const {
    const bool lightning = config_.mixer_of(layer.index) == Mixer::lightning;
    for (size_t i = 0; i < slices->size(); ++i)
        LEVIN_REQUIRE(
            lightning || !slices->hands_on(i), "model",
            "trainer.recompute_slice={} cuts a sequence, and layer {} has softmax attention, which "
            "needs it whole; set trainer.recompute_slice=0 or to the length of the sequences at least",
            slice_tokens_, layer.index);
    const auto region = [this, &layer, slices](size_t i, const Variable& x, Variable& state) {
        LayerState carried{.kv = state, .keys = {}, .values = {}};
        const Residual result =
            layer.forward(config_, {x, {}}, slices->layouts[i], slices->hands_on(i) ? &carried : nullptr);
        state = carried.kv;
        return result.whole();
    };
    const Variable x = stream.whole();
    std::vector<RowSlice> rows = slices->rows;
    if (rows.size() == 1) rows[0].rows = x.dim(0);  // this rank's share, where tokens are scattered
    return {recompute(region, x, rows), {}};
}

std::vector<Residual> LanguageModel::run_layers(StageLayers range, const Residual& stream,
                                                const ops::TokenLayout& layout, DecodeState* state) const {
    const SelectiveRecomputation selective(recomputation_ == Recomputation::selective);
    std::shared_ptr<const LayerSlices> slices;
    if (recomputation_ == Recomputation::full && !state) {
        slices = std::make_shared<const LayerSlices>(cut_into_slices(layout, slice_tokens_));
        LEVIN_REQUIRE(
            !tp_.scatter || slices->size() == 1, "model",
            "trainer.recompute_slice is {} and a batch has {} tokens, which parallel.sequence_scatter "
            "divides over ranks: they are not cut once more; set one of the two to 0 or false",
            slice_tokens_, layout.tokens());
        if (slices->size() == 1 && !layout.slices && !gradients_enabled()) slices = nullptr;
    }
    LEVIN_CHECK(slices || !layout.slices, "model",
                "a layout in {} slices for a model that does not recompute in slices", layout.slices->size());
    std::vector<Residual> streams{stream};
    std::vector<ops::TokenLayout> layouts{layout};
    if (two_batches_ && !slices && !state) {
        LayerSlices halves = cut_into_halves(layout);
        streams = split_rows(stream, halves.rows);
        layouts = std::move(halves.layouts);
    }
    for (size_t i = 0; i < layers_.size(); ++i) {
        const Layer& layer = layers_[i];
        if (layer.index < range.first || layer.index >= range.last) continue;
        if (slices) {
            streams[0] = recompute_layer(layer, streams[0], slices);
            continue;
        }
        for (size_t part = 0; part < streams.size(); ++part)
            streams[part] = layer.attention_block(config_, streams[part], layouts[part],
                                                  state ? &state->layers[i] : nullptr);
        for (size_t part = 0; part < streams.size(); ++part)
            streams[part] = layer.glu_block(config_, streams[part], layouts[part]);
    }
    return streams;
}

Variable LanguageModel::embed(const Tensor& ids, double scale) const {
    if (!tp_) return ops::embedding(embedding_, ids, scale, config_.pad_token_id);
    return tensor_parallel::embedding(embedding_, first_row_, ids, scale, config_.pad_token_id,
                                      tp_.shares(ids.count()));
}

namespace {

// In its row, of every token.
std::vector<int32_t> positions_of(const ops::TokenLayout& layout) {
    std::vector<int32_t> positions;
    const auto add = [&](const ops::TokenLayout& part) {
        for (int64_t t = 0; t < part.tokens(); ++t)
            positions.push_back(static_cast<int32_t>(part.first_position + t % part.length));
    };
    if (!layout.slices)
        add(layout);
    else
        for (const ops::TokenLayout& slice : *layout.slices) add(slice);
    return positions;
}

}  // namespace

Residual LanguageModel::begin(const Tensor& ids, const ops::TokenLayout& layout) const {
    const double scale = config_.scale_embedding ? std::sqrt(static_cast<double>(config_.hidden_size)) : 1.0;
    Residual stream{embed(ids, scale), {}};
    if (position_embedding_.defined()) {
        const std::vector<int32_t> of_tokens = positions_of(layout);
        const int32_t last = *std::max_element(of_tokens.begin(), of_tokens.end());
        LEVIN_REQUIRE(last < config_.max_position, "model",
                      "position {} is beyond model.max_position {}: absolute positions end there", last,
                      config_.max_position);
        const tensor_parallel::TokenShares shares = tp_.shares(layout.tokens());
        std::vector<int32_t> positions(static_cast<size_t>(shares.rows()));
        for (int64_t row = 0; row < shares.rows(); ++row)
            positions[static_cast<size_t>(row)] =
                of_tokens[static_cast<size_t>(shares.token_of(row)) % of_tokens.size()];
        stream.branch =
            ops::embedding(position_embedding_, Tensor::from({shares.rows()}, positions, device_));
    }
    return stream;
}

Variable LanguageModel::hidden(const Tensor& ids, ops::TokenLayout layout, DecodeState* state) const {
    LEVIN_CHECK(ids.count() == layout.tokens(), "model", "{} ids for {} tokens", ids.count(),
                layout.tokens());
    LEVIN_CHECK(!state || !gradients_enabled(), "model", "decoding keeps no gradients: use NoGradient");
    LEVIN_CHECK(stages_ == 1, "model", "one of {} stages cannot run alone", stages_);
    if (state) layout.first_position = state->position;
    const auto streams = run_layers({0, config_.num_layers}, begin(ids, layout), layout, state);
    if (state) state->position += layout.length;
    return end(streams, layout);
}

Variable LanguageModel::end(const std::vector<Residual>& streams, const ops::TokenLayout& layout) const {
    std::vector<Variable> parts;
    for (const Residual& stream : streams) parts.push_back(add_and_norm(config_, stream, final_norm_).second);
    const Variable x = ops::join_rows(parts);
    return tp_.scatter ? tensor_parallel::enter(x, tp_.shares(layout.tokens())) : x;
}

Variable LanguageModel::run_stage(int64_t stage, const Variable& input, const Tensor& ids,
                                  const ops::TokenLayout& layout) const {
    const auto streams = run_layers(layers_of_stage(config_, stages_, stage),
                                    stage == 0 ? begin(ids, layout) : Residual{input, {}}, layout, nullptr);
    if (stage == stages_ - 1) return end(streams, layout);
    std::vector<Variable> parts;
    for (const Residual& stream : streams) parts.push_back(stream.whole());
    return ops::join_rows(parts);  // one tensor travels
}

ops::CrossEntropyResult LanguageModel::loss_of(const Variable& hidden, const Tensor& targets,
                                               const ops::CrossEntropyOptions& options) const {
    if (!tp_) return ops::linear_cross_entropy(hidden, head_, targets, options);
    return tensor_parallel::linear_cross_entropy(hidden, head_, first_row_, config_.vocab_size, targets,
                                                 options, tp_.shares(targets.count()));
}

ops::CrossEntropyResult LanguageModel::loss(const Tensor& ids, const Tensor& targets,
                                            const ops::TokenLayout& layout,
                                            const ops::CrossEntropyOptions& options) const {
    return loss_of(hidden(ids, layout), targets, options);
}

Tensor LanguageModel::logits(const Variable& hidden) const {
    NoGradient off;
    const Variable own = ops::linear(hidden, head_);
    if (!tp_) return own.value();
    return tensor_parallel::gather_columns(own, tp_.ranks)
        .value()
        .narrow(-1, 0, config_.vocab_size)
        .contiguous();
}

DecodeState LanguageModel::new_state() const {
    DecodeState state;
    state.layers.resize(layers_.size());
    return state;
}

void check_tokens(const LanguageModel& model, std::span<const int32_t> ids) {
    for (const int32_t id : ids)
        LEVIN_REQUIRE(id >= 0 && id < model.config().vocab_size, "generate",
                      "token id {} is outside the model's vocabulary of {}: is this the model's tokenizer?",
                      id, model.config().vocab_size);
}

}  // namespace levin
