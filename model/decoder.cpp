#include "model/decoder.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/transfer.h"
#include "kernels/decode.h"
#include "model/slopes.h"

namespace levin {

namespace {

// A parameter's value by name; undefined when the model has none of this name.
Tensor value_of(const LanguageModel& model, const std::string& name) {
    for (const Parameter& parameter : model.parameters())
        if (parameter.spec.name == name) return parameter.variable.value();
    return {};
}

}  // namespace

bool Decoder::supports(const LanguageModel& model) {
    const ModelConfig& config = model.config();
    if (config.norm != Norm::simplermsnorm || config.bias || config.position == Position::absolute)
        return false;
    if (model.mesh() && model.mesh()->model()->size() > 1) return false;
    for (int64_t i = 0; i < config.num_layers; ++i)
        if (config.mixer_of(i) != Mixer::lightning) return false;
    return config.head_dim() * (config.position == Position::lrpe ? 2 : 1) <= 256;
}

Decoder::Decoder(const LanguageModel& model, int64_t batch)
    : model_(model), config_(model.config()), batch_(batch) {
    LEVIN_CHECK(supports(model), "decode", "this model needs LanguageModel::hidden()");
    const Device device = model.device();
    const DType dtype = model.dtype(), acc = accumulator_of(dtype);
    const int64_t d = config_.hidden_size, f = config_.glu_width();
    const bool multiply_gate = config_.gate == Gate::multiply;
    embedding_ = value_of(model, "embedding");
    head_ = config_.tie_embeddings ? embedding_ : value_of(model, "head");
    const auto matrix = [&](int64_t width) { return Tensor::zeros({batch, width}, dtype, device); };
    const int64_t projected = (multiply_gate ? 4 : 3) * d;
    size_t workspace = 0;
    const auto reserve = [&](int64_t width, int64_t outputs) {
        workspace = std::max(workspace, kernels::decode_workspace(batch, width, outputs, dtype));
    };
    reserve(d, projected), reserve(d, f), reserve(f, d), reserve(d, config_.vocab_size),
        reserve(d, config_.gate_dim);
    for (int64_t i = 0; i < config_.num_layers; ++i) {
        const auto named = [&](const char* name) {
            return value_of(model, fmt::format("layers.{}.{}", i, name));
        };
        LayerMemory layer{.in = named(multiply_gate ? "attention.qkvu" : "attention.qkv"),
                          .out = named("attention.out"),
                          .glu_in = named("glu.in"),
                          .glu_out = named("glu.out"),
                          .gate_down = named("attention.gate_down"),
                          .gate_up = named("attention.gate_up"),
                          .theta = named("attention.theta"),
                          .slopes = Tensor::from({config_.num_heads}, decay_slopes(config_, i), device),
                          .state = {}};
        const int64_t key_width = config_.head_dim() * (layer.theta.defined() ? 2 : 1);
        layer.state = Tensor::zeros({batch, config_.num_heads, key_width, config_.head_dim()}, acc, device);
        layers_.push_back(std::move(layer));
    }
    ids_ = Tensor::zeros({batch}, DType::i32, device);
    device_position_ = Tensor::zeros({1}, DType::i64, device);
    for (Tensor& h : h_) h = matrix(d);
    branch_ = matrix(d);
    projection_ = matrix(projected);
    o_ = matrix(d);
    low_ = matrix(std::max<int64_t>(1, config_.gate_dim));
    gate_ = matrix(d);
    product_ = matrix(f);
    logits_ = matrix(config_.vocab_size);
    workspace_ = Tensor::empty({static_cast<int64_t>(workspace)}, DType::u8, device);
}

void Decoder::set_state(const DecodeState& state) {
    LEVIN_CHECK(state.layers.size() == layers_.size(), "decode", "a state of {} layers for a model of {}",
                state.layers.size(), layers_.size());
    for (size_t i = 0; i < layers_.size(); ++i) {
        if (!state.layers[i].kv.defined()) {
            layers_[i].state.fill(0);
            continue;
        }
        const Tensor& from = state.layers[i].kv.value();
        LEVIN_CHECK(from.shape() == layers_[i].state.shape(), "decode", "layer {}: state {}, expected {}", i,
                    to_string(from.shape()), to_string(layers_[i].state.shape()));
        layers_[i].state.copy_from(from);
    }
    set_position(state.position);
}

void Decoder::set_position(int64_t position) {
    position_ = position;
    device_position_.copy_from(Tensor::from({1}, std::vector<int64_t>{position}, model_.device()));
}

void Decoder::set_tokens(std::span<const int32_t> ids) {
    LEVIN_CHECK(static_cast<int64_t>(ids.size()) == batch_, "decode", "{} tokens for {} sequences",
                ids.size(), batch_);
    check_tokens(model_, ids);
    ids_.copy_from(upload({batch_}, DType::i32, ids.data(), ids.size(), model_.device()));
}

void Decoder::queue_step() {
    using Input = kernels::DecodeLinear::Input;
    const Stream stream = ids_.stream();
    const DType dtype = model_.dtype();
    const int64_t d = config_.hidden_size, f = config_.glu_width();
    const bool multiply_gate = config_.gate == Gate::multiply;
    const auto element = static_cast<int64_t>(size_of(dtype));
    const auto columns = [&](const Tensor& t, int64_t first) {
        return static_cast<char*>(t.data()) + first * element;
    };
    kernels::DecodeLinear base{};
    base.batch = batch_;
    base.dtype = dtype;
    base.eps = config_.norm_epsilon();
    base.workspace = workspace_.data();

    // One row is summed where the next product prepares its input; several cost least where the product that
    // makes the branch adds it to the stream.
    const bool add = batch_ > 1;
    // The residual stream: at first the tokens' embeddings, then h_[current], to which a branch may have to
    // be added.
    int current = 0;
    bool embedded = false, has_branch = false;
    // A norm of the residual stream and the product behind it; `last`: the stream moves on.
    const auto from_stream = [&](const Tensor& weight, int64_t outputs, const Tensor& y, bool glu,
                                 bool last) {
        kernels::DecodeLinear linear = base;
        linear.input = Input::norm;
        linear.width = d;
        linear.outputs = outputs;
        linear.x = embedded ? h_[current].data() : embedding_.data();
        linear.ids = embedded ? nullptr : ids_.data<int32_t>();
        linear.scale = config_.scale_embedding ? std::sqrt(static_cast<double>(d)) : 1.0;
        linear.branch = has_branch ? branch_.data() : nullptr;
        linear.h = has_branch || !embedded ? h_[1 - current].data() : nullptr;
        linear.weight = weight.data();
        linear.glu = glu;
        linear.activation = config_.glu_activation;
        linear.y = y.data();
        kernels::decode_linear(stream, linear);
        if (last && linear.h) {
            current = 1 - current;
            has_branch = false;
            embedded = true;
        }
    };
    const auto plain = [&](const Tensor& x, int64_t width, const Tensor& weight, int64_t outputs,
                           const Tensor& y, bool add_to_y = false) {
        kernels::DecodeLinear linear = base;
        linear.input = Input::plain;
        linear.width = width;
        linear.outputs = outputs;
        linear.x = x.data();
        linear.weight = weight.data();
        linear.y = y.data();
        linear.add = add_to_y;
        kernels::decode_linear(stream, linear);
    };
    const int64_t projected = projection_.dim(1);
    for (const LayerMemory& layer : layers_) {
        if (config_.gate == Gate::sigmoid) {
            from_stream(layer.gate_down, config_.gate_dim, low_, false, false);
            plain(low_, config_.gate_dim, layer.gate_up, d, gate_);
        }
        from_stream(layer.in, projected, projection_, false, true);
        kernels::decode_attention(stream, {.batch = batch_,
                                           .heads = config_.num_heads,
                                           .key_dim = config_.head_dim(),
                                           .value_dim = config_.head_dim(),
                                           .dtype = dtype,
                                           .qk_activation = config_.qk_activation,
                                           .v_activation = config_.v_activation(),
                                           .slopes = layer.slopes.data<float>(),
                                           .theta = layer.theta.defined() ? layer.theta.data() : nullptr,
                                           .position = device_position_.data<int64_t>(),
                                           .q = columns(projection_, 0),
                                           .k = columns(projection_, d),
                                           .v = columns(projection_, 2 * d),
                                           .stride = projected,
                                           .state = layer.state.data(),
                                           .o = o_.data()});
        kernels::DecodeLinear out = base;
        out.input = config_.gate == Gate::none ? Input::norm : Input::gated_norm;
        out.width = out.outputs = d;
        out.x = o_.data();
        out.u = multiply_gate ? columns(projection_, 3 * d) : gate_.data();
        out.u_stride = multiply_gate ? projected : d;
        out.gate = multiply_gate ? ops::Activation::none : ops::Activation::sigmoid;
        out.weight = layer.out.data();
        out.y = add ? h_[current].data() : branch_.data();
        out.add = add;
        kernels::decode_linear(stream, out);
        has_branch = !add;
        from_stream(layer.glu_in, f, product_, true, true);
        plain(product_, f, layer.glu_out, d, add ? h_[current] : branch_, add);
        has_branch = !add;
    }
    from_stream(head_, config_.vocab_size, logits_, false, true);
    kernels::decode_advance(stream, {.batch = batch_,
                                     .vocab = config_.vocab_size,
                                     .dtype = dtype,
                                     .logits = logits_.data(),
                                     .ids = ids_.data<int32_t>(),
                                     .position = device_position_.data<int64_t>()});
}

void Decoder::step() {
    const OpScope scope("decode step");
    // The first step runs as it is, so that every algorithm is chosen; the second one is recorded.
    if (steps_ == 1 && model_.device().is_cuda()) graph_.record(ids_.stream(), [this] { queue_step(); });
    if (graph_.recorded())
        graph_.launch(ids_.stream());
    else
        queue_step();
    ++steps_;
    ++position_;
}

size_t Decoder::bytes_per_step() const {
    size_t bytes = 0;
    for (const Parameter& parameter : model_.parameters()) bytes += parameter.variable.value().bytes();
    // Of an embedding table apart from the head only the tokens' rows are read.
    if (!config_.tie_embeddings) bytes -= embedding_.bytes();
    for (const LayerMemory& layer : layers_) bytes += 2 * layer.state.bytes();
    return bytes;
}

}  // namespace levin
