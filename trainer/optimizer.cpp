#include "trainer/optimizer.h"

#include "core/random.h"
#include "kernels/elementwise.h"
#include "kernels/optimizer.h"

namespace levin {

namespace {

std::vector<OwnedRange> whole_parameters(const LanguageModel& model) {
    std::vector<OwnedRange> ranges;
    for (size_t i = 0; i < model.parameters().size(); ++i) {
        const Tensor& value = model.parameters()[i].variable.value();
        ranges.push_back({i, 0, value.count(), value.view({value.count()}), {}, false, false});
    }
    return ranges;
}

}  // namespace

Optimizer::Optimizer(LanguageModel& model, const AdamWSettings& settings, DataParallel* ranks)
    : model_(model), settings_(settings), acc_(accumulator_of(model.dtype())), ranks_(ranks) {
    MemoryScope scope(MemoryCategory::optimizer);
    for (OwnedRange& range : ranks ? ranks->owned() : whole_parameters(model)) {
        const Tensor& value = range.value;
        const bool split = settings.split_masters && value.dtype() == DType::bf16;
        const DType moments = settings.bf16_moments ? DType::bf16 : acc_;
        ranges_.push_back({range.parameter, range.start, range.count, value, range.gradient,
                           value.dtype() == acc_ ? value : (split ? Tensor{} : value.to(acc_)),
                           Tensor::zeros(value.shape(), moments, value.device()),
                           Tensor::zeros(value.shape(), moments, value.device()),
                           split ? Tensor::zeros(value.shape(), DType::u16, value.device()) : Tensor{},
                           range.first, range.last});
    }
    // On CPUs every stage of ZeRO shall give the same bits: the norm too is summed as the other stages do.
    if (ranks && ranks->stage() == 0 && model.device().is_cpu())
        for (int r = 0; r < ranks->ranks()->size(); ++r) shares_.push_back(ranks->share_of(r));
    sum_ = Tensor::zeros({1}, DType::f64, model.device());
    part_ = Tensor::zeros({1}, DType::f64, model.device());
    norm_ = Tensor::zeros({1}, DType::f64, model.device());
    scale_ = Tensor::zeros({1}, acc_, model.device());
}

// sum_ = sum of the squares of all gradients of the model.
void Optimizer::sum_gradients() {
    const auto sum_over = [this](const auto& ranges, const Tensor& sum) {
        bool begun = false;
        const auto add = [&](bool last, DType type) {
            std::vector<const void*> pointers;
            std::vector<int64_t> counts;
            for (const auto& range : ranges) {
                // A gradient that several ranks of the model hold alike is one rank's to count.
                if (range.last != last || !model_.parameters()[range.parameter].counted) continue;
                if (range.gradient.dtype() != type) continue;
                pointers.push_back(range.gradient.data());
                counts.push_back(range.count);
            }
            if (begun && pointers.empty()) return;
            kernels::sum_of_squares(sum.stream(), {.tensors = static_cast<int64_t>(pointers.size()),
                                                   .list = pointers.data(),
                                                   .counts = counts.data(),
                                                   .dtype = type,
                                                   .out = (begun ? part_ : sum).template data<double>()});
            if (begun)
                kernels::add(sum.stream(), {.count = 1,
                                            .dtype = DType::f64,
                                            .alpha = 1,
                                            .a = sum.data(),
                                            .beta = 1,
                                            .b = part_.data(),
                                            .y = sum.data()});
            begun = true;
        };
        // What is reduced last is still on its way: the others first.
        for (const bool last : {false, true})
            for (const DType type : {acc_, DType::bf16}) add(last, type);
    };
    if (shares_.empty()) {
        sum_over(ranges_, sum_);
        if (ranks_ && ranks_->stage() > 0) ranks_->ranks()->all_reduce(sum_);
    } else {
        const Tensor share = Tensor::zeros({1}, DType::f64);
        for (size_t r = 0; r < shares_.size(); ++r) {
            sum_over(shares_[r], share);
            double& sum = *sum_.data<double>();
            sum = r == 0 ? *share.data<double>() : sum + *share.data<double>();
        }
    }
    // The norm is over the whole model, whose parts lie on the ranks of tensor and pipeline parallelism.
    if (const auto& mesh = model_.mesh(); mesh && mesh->model()->size() > 1) mesh->model()->all_reduce(sum_);
}

void Optimizer::step(double learning_rate) {
    auto& parameters = model_.parameters();
    if (!ranks_)
        for (OptimizerRange& range : ranges_) {
            Tensor gradient = parameters[range.parameter].variable.gradient();
            if (!gradient.defined()) gradient = Tensor::zeros({range.count}, acc_, range.value.device());
            range.gradient = gradient.view({range.count});
        }
    sum_gradients();
    const Stream stream = sum_.stream();
    kernels::clip_scale(stream, {.sum = sum_.data<double>(),
                                 .max_norm = settings_.clip_grad_norm,
                                 .grad_norm = norm_.data<double>(),
                                 .acc = acc_,
                                 .grad_scale = scale_.data()});
    ++steps_;
    // The values that the forward pass needs first travel while the others are still being updated.
    update(true, learning_rate);
    if (ranks_) ranks_->publish_first();
    update(false, learning_rate);
    for (Parameter& parameter : parameters) parameter.variable.clear_gradient();
    if (ranks_)
        ranks_->publish();
    else
        for (OptimizerRange& range : ranges_) range.gradient = {};
}

// The ranges that are `first`, or the others.
void Optimizer::update(bool first, double learning_rate) {
    for (const DType type : {acc_, DType::bf16}) {
        std::vector<kernels::AdamWTensor> list;
        std::vector<kernels::MomentRounding> roundings;
        for (const OptimizerRange& range : ranges_) {
            if (range.first != first || range.gradient.dtype() != type) continue;
            const Parameter& parameter = model_.parameters()[range.parameter];
            const auto add = [&](int64_t begin, int64_t end) {
                const auto from = [&](const Tensor& tensor) {
                    return tensor.defined() ? tensor.narrow(0, begin, end - begin).data() : nullptr;
                };
                list.push_back({.count = end - begin,
                                .master = from(range.master),
                                .model = range.value.dtype() == acc_ ? nullptr : from(range.value),
                                .grad = from(range.gradient),
                                .m = from(range.m),
                                .v = from(range.v),
                                .weight_decay = parameter.spec.weight_decay ? settings_.weight_decay : 0,
                                .remainder = static_cast<uint16_t*>(from(range.remainder))});
            };
            if (!settings_.bf16_moments) {
                add(0, range.count);
                continue;
            }
            const uint64_t key =
                Random(0, "moments of " + parameter.spec.name).bits(static_cast<uint64_t>(steps_));
            for (const Stretch& part :
                 stretches_of(parameter.spec, parameter.shard, range.start, range.count)) {
                add(part.begin, part.end);
                roundings.push_back({.key = {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)},
                                     .first = part.first,
                                     .column = part.column,
                                     .columns = part.columns,
                                     .gap = part.gap});
            }
        }
        if (list.empty()) continue;
        kernels::adamw(scale_.stream(), {.tensors = static_cast<int64_t>(list.size()),
                                         .list = list.data(),
                                         .acc = acc_,
                                         .learning_rate = learning_rate,
                                         .beta1 = settings_.beta1,
                                         .beta2 = settings_.beta2,
                                         .eps = settings_.eps,
                                         .step = steps_,
                                         .grad_scale_pointer = scale_.data(),
                                         .bf16_gradients = type != acc_,
                                         .rounding = settings_.bf16_moments ? roundings.data() : nullptr});
    }
}

Tensor Optimizer::master_of(const OptimizerRange& range) const {
    if (!range.remainder.defined()) return range.master;
    Tensor joined = Tensor::empty({range.count}, acc_, range.value.device());
    kernels::split_master(joined.stream(), {.count = range.count,
                                            .master = joined.data<float>(),
                                            .model = range.value.data(),
                                            .remainder = static_cast<uint16_t*>(range.remainder.data()),
                                            .join = true});
    return joined.to(Device{});
}

void Optimizer::set_master(OptimizerRange& range, const Tensor& master) {
    if (!range.remainder.defined()) {
        if (!master.shares_storage(range.master)) range.master.copy_from(master);
        if (range.value.dtype() != acc_) range.value.copy_from(range.master);
        return;
    }
    const Tensor whole = master.to(range.value.device()).to(acc_).contiguous();
    kernels::split_master(whole.stream(), {.count = range.count,
                                           .master = whole.data<float>(),
                                           .model = range.value.data(),
                                           .remainder = static_cast<uint16_t*>(range.remainder.data()),
                                           .join = false});
}

Tensor Optimizer::master(size_t parameter) const {
    const OptimizerRange& range = ranges_[parameter];
    const Shape& shape = model_.parameters()[parameter].variable.shape();
    LEVIN_CHECK(range.parameter == parameter && range.count == element_count(shape), "optimizer",
                "the master of parameter {} is divided among ranks", parameter);
    return master_of(range).view(shape);
}

void Optimizer::publish() {
    if (ranks_) ranks_->publish();
}

}  // namespace levin
