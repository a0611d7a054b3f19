// AdamW over all parameters of a model, or over the share of them that this rank keeps (ZeRO), with gradient
// clipping; nothing here waits for the device.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "model/language_model.h"
#include "parallel/data_parallel.h"

namespace levin {

struct AdamWSettings {
    double beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1;
    double clip_grad_norm = 1.0;  // 0: no clipping
    // The f32 masters of bf16 weights as the weight and 16 more bits (kernels/optimizer.h): exact, and a
    // third smaller than masters beside the weights.
    bool split_masters = true;
    // Both moments in bf16, rounded up or down at random without bias (kernels/optimizer.h), by a function of
    // the parameter's name, the step and the element's place in the whole parameter alone: the same at any
    // layout and after a resume. Not for f64.
    bool bf16_moments = false;
};

// A range of a parameter's elements with its state: [count] each, in the accumulator type of the model (the
// gradient in the type in which it was reduced; m and v perhaps in bf16). `master` is the value itself where
// the types agree; a split master has a `remainder` (u16) instead.
struct OptimizerRange {
    size_t parameter;
    int64_t start, count;
    Tensor value, gradient;  // gradient undefined: that of the parameter
    Tensor master, m, v, remainder;
    bool first = false, last = false;  // OwnedRange
};

// Keeps, per range, the moments m and v and, for a bf16 model, an f32 master weight.
class Optimizer {
public:
    // Takes the model's present values as the masters' start. With `ranks` (whose parameters are the model's,
    // in order) it keeps what this rank owns there, else all. Collective calls then go over ranks->ranks().
    Optimizer(LanguageModel& model, const AdamWSettings& settings, DataParallel* ranks = nullptr);

    // One update from the gradients of the model's parameters, which are then cleared. A parameter without a
    // gradient counts as having a zero one. Weight decay by the parameter table.
    void step(double learning_rate);
    // L2 norm of the gradients of the last step, before clipping: f64 [1] on the device, overwritten by the
    // next step.
    Tensor gradient_norm() const { return norm_; }

    int64_t steps_done() const { return steps_; }
    void set_steps_done(int64_t steps) { steps_ = steps; }

    // The state this rank keeps, for checkpoints.
    const std::vector<OptimizerRange>& ranges() const { return ranges_; }
    // The masters of a range, [count] in the accumulator type: the tensor itself, or in host memory a copy of
    // what is split.
    Tensor master_of(const OptimizerRange& range) const;
    // Sets them from such a tensor; publish() is due after the last one.
    void set_master(OptimizerRange& range, const Tensor& master);
    std::vector<OptimizerRange>& ranges() { return ranges_; }
    // A whole parameter's, in its shape, where nothing is divided among ranks.
    Tensor master(size_t parameter) const;
    // After masters were set: makes the copies of other ranks agree.
    void publish();

private:
    void sum_gradients();
    void update(bool first, double learning_rate);

    LanguageModel& model_;
    AdamWSettings settings_;
    DType acc_;
    DataParallel* ranks_;
    std::vector<OptimizerRange> ranges_;
    std::vector<std::vector<OwnedRange>> shares_;  // of each rank, where the norm is summed share by share
    // Device scalars: squared norm, a part of it, norm (f64), clip factor (accumulator type).
    Tensor sum_, part_, norm_, scale_;
    int64_t steps_ = 0;
};

}  // namespace levin
