#include "trainer/step_graph.h"

#include <algorithm>

#include "kernels/device_memory.h"

namespace levin {

namespace {

Tensor pass(const LanguageModel& model, const Tensor& ids, const Tensor& targets,
            const ops::TokenLayout& layout, const ops::CrossEntropyOptions& options) {
    const Variable loss = model.loss(ids, targets, layout, options).loss;
    backward(loss);
    return loss.value();
}

std::vector<bool> gradients_of(const std::vector<Variable>& parameters) {
    std::vector<bool> result;
    for (const Variable& parameter : parameters) result.push_back(parameter.gradient().defined());
    return result;
}

std::vector<const void*> addresses_of(const std::vector<Variable>& parameters) {
    std::vector<const void*> result;
    for (const Variable& parameter : parameters) {
        result.push_back(parameter.value().data());
        result.push_back(parameter.gradient().defined() ? parameter.gradient().data() : nullptr);
    }
    return result;
}

}  // namespace

bool wants_step_graph(const Config& config, const Device& device, int64_t ranks, double flops_per_second) {
    const TrainerConfig& t = config.trainer;
    if (t.step_graph == Switch::off || !step_graph_obstacle(config, device.type, ranks).empty()) return false;
    if (t.step_graph == Switch::on) return true;
    // The host queues some 40 kernels a layer and pass, in about 4 us each. The device needs for them at
    // least the time of their arithmetic at half its peak. Where that is several times the host's time, the
    // host is always ahead, and memory set aside (which an evaluation cannot use) buys little.
    constexpr double kHostSeconds = 40 * 4e-6, kAhead = 4;
    const double flops = config.model.flops_per_token(t.sequence_length) *
                         static_cast<double>(t.micro_batch * t.sequence_length);
    return flops / (0.5 * flops_per_second) <
           kAhead * kHostSeconds * static_cast<double>(config.model.num_layers);
}

StepGraph::StepGraph(const LanguageModel& model)
    : model_(model),
      stream_(kernels::default_stream(model.device())),
      pool_(std::make_unique<MemoryPool>(model.device())) {
    for (const Parameter& parameter : model.parameters()) parameters_.push_back(parameter.variable);
    first_.emplace();
    later_.emplace();
}

StepGraph::~StepGraph() {
    try {
        kernels::synchronize(stream_);  // a launch may still be running
    } catch (const Error&) {
        // the device failed: nothing runs any more
    }
}

bool StepGraph::takes(const DeviceBatch& batch, const ops::CrossEntropyOptions& options) {
    if (!failure_.empty() || batch.layout.cu_seqlens.defined() || batch.layout.chunks) return false;
    if (!ids_.defined()) {
        const OpScope scope("step graph");
        layout_ = batch.layout;
        options_ = options;
        ids_ = Tensor::empty(batch.ids.shape(), DType::i32, model_.device());
        targets_ = Tensor::empty(batch.targets.shape(), DType::i32, model_.device());
    }
    return batch.layout.batch == layout_.batch && batch.layout.length == layout_.length &&
           batch.layout.first_position == layout_.first_position && options == options_;
}

Tensor StepGraph::run(const DeviceBatch& batch, const ops::CrossEntropyOptions& options) {
    const auto as_it_is = [&] { return pass(model_, batch.ids, batch.targets, batch.layout, options); };
    if (!takes(batch, options)) return as_it_is();
    const std::vector<bool> before = gradients_of(parameters_);
    Recording& recording = std::find(before.begin(), before.end(), true) == before.end() ? *first_ : *later_;
    if (!recording.warm) {
        const Tensor loss = as_it_is();
        recording.warm = true;
        recording.before = before;
        recording.addresses = addresses_of(parameters_);
        return loss;
    }
    // Gradients of some parameters only, as after a pass of another kind.
    if (before != recording.before) return as_it_is();
    if (!recording.graph.recorded()) record(recording);
    return failure_.empty() ? launch(recording, batch) : as_it_is();
}

void StepGraph::record(Recording& recording) {
    try {
        release_cached_memory(model_.device());  // the pool takes a pass's worth beside what passes left
        recording.graph.record(stream_, [this, &recording] {
            const MemoryPool::Scope scope(*pool_);
            recording.loss = {};
            recording.loss = pass(model_, ids_, targets_, layout_, options_);
        });
        const size_t losses = size_t{first_->loss.defined()} + size_t{later_->loss.defined()};
        LEVIN_CHECK(pool_->blocks_with_users() == losses, "step graph",
                    "a recorded pass keeps {} blocks of memory beside its loss, and the next one would "
                    "overwrite them",
                    pool_->blocks_with_users() - losses);
    } catch (const Error& error) {
        // Nothing was computed: what counts as a gradient is what was one before.
        for (size_t i = 0; i < parameters_.size(); ++i)
            if (!recording.before[i]) parameters_[i].clear_gradient();
        give_up(error.what());
    }
}

Tensor StepGraph::launch(Recording& recording, const DeviceBatch& batch) {
    const OpScope scope("step graph");
    ids_.copy_from(batch.ids);
    targets_.copy_from(batch.targets);
    for (size_t i = 0; i < parameters_.size(); ++i)
        LEVIN_CHECK(parameters_[i].value().data() == recording.addresses[2 * i], "step graph",
                    "parameter {} is no longer where it was when the pass was recorded", i);
    recording.graph.launch(stream_);
    ++launches_;
    for (size_t i = 0; i < parameters_.size(); ++i)
        if (recording.addresses[2 * i + 1]) parameters_[i].set_gradient_written();
    LEVIN_CHECK(addresses_of(parameters_) == recording.addresses, "step graph",
                "a gradient is no longer where it was when the pass was recorded");
    return recording.loss.clone();
}

void StepGraph::give_up(const std::string& why) {
    failure_ = why.substr(0, why.find('\n'));
    kernels::synchronize(stream_);  // a launch of the other recording may still be running
    first_.reset();
    later_.reset();
    pool_.reset();
    ids_ = targets_ = {};
}

}  // namespace levin
