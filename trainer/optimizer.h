// AdamW over all parameters of a model, with gradient clipping; nothing here waits for the device.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "model/language_model.h"

namespace levin {

struct AdamWSettings {
    double beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1;
    double clip_grad_norm = 1.0;  // 0: no clipping
};

// Keeps, per parameter, the moments m and v and, for a bf16 model, an f32 master weight. Everything is in the
// accumulator type of the model.
class Optimizer {
public:
    // Takes the model's present values as the masters' start.
    Optimizer(LanguageModel& model, const AdamWSettings& settings);

    // One update from the gradients of the model's parameters, which are then cleared. A parameter without a
    // gradient counts as having a zero one. Weight decay by the parameter table.
    void step(double learning_rate);
    // L2 norm of the gradients of the last step, before clipping: f64 [1] on the device, overwritten by the
    // next step.
    Tensor gradient_norm() const { return norm_; }

    int64_t steps_done() const { return steps_; }
    void set_steps_done(int64_t steps) { steps_ = steps; }

    // State by parameter name: views, for checkpoints.
    Tensor master(size_t parameter) const { return states_[parameter].master; }
    Tensor first_moment(size_t parameter) const { return states_[parameter].m; }
    Tensor second_moment(size_t parameter) const { return states_[parameter].v; }
    // After the masters were written from outside: makes the model's own copies agree.
    void masters_changed();

private:
    struct State {
        Tensor master, m, v;
    };
    LanguageModel& model_;
    AdamWSettings settings_;
    DType acc_;
    std::vector<State> states_;
    Tensor sum_, norm_,
        scale_;  // squared norm and norm (f64), clip factor (accumulator type): device scalars
    int64_t steps_ = 0;
};

}  // namespace levin
