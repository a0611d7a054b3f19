#include "trainer/optimizer.h"

#include "kernels/optimizer.h"

namespace levin {

Optimizer::Optimizer(LanguageModel& model, const AdamWSettings& settings)
    : model_(model), settings_(settings), acc_(accumulator_of(model.dtype())) {
    MemoryScope scope(MemoryCategory::optimizer);
    for (Parameter& parameter : model.parameters()) {
        const Tensor& value = parameter.variable.value();
        State state;
        state.master = value.dtype() == acc_ ? value : value.to(acc_);
        state.m = Tensor::zeros(value.shape(), acc_, value.device());
        state.v = Tensor::zeros(value.shape(), acc_, value.device());
        states_.push_back(std::move(state));
    }
    sum_ = Tensor::zeros({1}, DType::f64, model.device());
    norm_ = Tensor::zeros({1}, DType::f64, model.device());
    scale_ = Tensor::zeros({1}, acc_, model.device());
}

void Optimizer::step(double learning_rate) {
    auto& parameters = model_.parameters();
    std::vector<Tensor> gradients;
    std::vector<const void*> pointers;
    std::vector<int64_t> counts;
    std::vector<kernels::AdamWTensor> list;
    for (size_t i = 0; i < parameters.size(); ++i) {
        const Tensor& value = parameters[i].variable.value();
        Tensor gradient = parameters[i].variable.gradient();
        if (!gradient.defined()) gradient = Tensor::zeros(value.shape(), acc_, value.device());
        const State& state = states_[i];
        if (parameters[i].counted) {
            pointers.push_back(gradient.data());
            counts.push_back(gradient.count());
        }
        list.push_back({.count = value.count(),
                        .master = state.master.data(),
                        .model = value.dtype() == acc_ ? nullptr : value.data(),
                        .grad = gradient.data(),
                        .m = state.m.data(),
                        .v = state.v.data(),
                        .weight_decay = parameters[i].spec.weight_decay ? settings_.weight_decay : 0});
        gradients.push_back(std::move(gradient));
    }
    const Stream stream = sum_.stream();
    kernels::sum_of_squares(stream, {.tensors = static_cast<int64_t>(pointers.size()),
                                     .list = pointers.data(),
                                     .counts = counts.data(),
                                     .dtype = acc_,
                                     .out = sum_.data<double>()});
    // The norm is over the whole model, whose parts lie on the ranks of tensor and pipeline parallelism.
    if (const auto& mesh = model_.mesh(); mesh && mesh->model()->size() > 1) mesh->model()->all_reduce(sum_);
    kernels::clip_scale(stream, {.sum = sum_.data<double>(),
                                 .max_norm = settings_.clip_grad_norm,
                                 .grad_norm = norm_.data<double>(),
                                 .acc = acc_,
                                 .grad_scale = scale_.data()});
    ++steps_;
    kernels::adamw(stream, {.tensors = static_cast<int64_t>(list.size()),
                            .list = list.data(),
                            .acc = acc_,
                            .learning_rate = learning_rate,
                            .beta1 = settings_.beta1,
                            .beta2 = settings_.beta2,
                            .eps = settings_.eps,
                            .step = steps_,
                            .grad_scale_pointer = scale_.data()});
    for (Parameter& parameter : parameters) parameter.variable.clear_gradient();
}

void Optimizer::masters_changed() {
    for (size_t i = 0; i < states_.size(); ++i) {
        Tensor value = model_.parameters()[i].variable.value();
        if (value.dtype() != acc_) value.copy_from(states_[i].master);
    }
}

}  // namespace levin
