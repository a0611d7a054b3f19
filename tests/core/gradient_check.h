// The one gradient check of levin: full Jacobian by central finite differences in float64.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "core/autograd.h"
#include "core/random.h"

namespace levin::test {

using Function = std::function<std::vector<Variable>(const std::vector<Variable>&)>;

inline Tensor random_tensor(const Shape& shape, const std::string& name, double scale = 1,
                            DType dtype = DType::f64) {
    Tensor values = Tensor::empty(shape, DType::f64);
    fill_normal(values, Random(7, name), scale);
    return values.to(dtype);
}

// Checks every derivative of every output element with respect to every input element. `inputs` are f64
// leaves. Each output is contracted with fixed random weights, once per output, so that all outputs must be
// right at the same time; the contraction of one output element at a time would only find the same errors
// more slowly, except where two of them cancel, which random weights exclude.
inline void check_gradients(const Function& function, const std::vector<Tensor>& inputs,
                            double tolerance = 2e-7, double step = 1e-5) {
    std::vector<Variable> leaves;
    for (const Tensor& input : inputs) leaves.emplace_back(input.clone(), true);
    const std::vector<Variable> outputs = function(leaves);
    std::vector<Variable> roots;
    std::vector<Tensor> seeds;
    for (size_t i = 0; i < outputs.size(); ++i) {
        ASSERT_TRUE(outputs[i].requires_grad()) << "output " << i << " is not connected";
        roots.push_back(outputs[i]);
        seeds.push_back(random_tensor(outputs[i].shape(), "seed" + std::to_string(i)));
    }
    const auto contracted = [&](const std::vector<Tensor>& values) {
        NoGradient off;
        std::vector<Variable> plain;
        for (const Tensor& value : values) plain.emplace_back(value);
        double sum = 0;
        const std::vector<Variable> results = function(plain);
        for (size_t i = 0; i < results.size(); ++i) {
            const auto y = results[i].value().to_vector(), w = seeds[i].to_vector();
            for (size_t j = 0; j < y.size(); ++j) sum += y[j] * w[j];
        }
        return sum;
    };
    backward(roots, seeds);
    for (size_t i = 0; i < inputs.size(); ++i) {
        ASSERT_TRUE(leaves[i].gradient().defined()) << "input " << i << " got no gradient";
        const auto gradient = leaves[i].gradient().to_vector();
        double scale = 0;
        for (const double g : gradient) scale = std::max(scale, std::abs(g));
        for (size_t j = 0; j < gradient.size(); ++j) {
            std::vector<Tensor> moved;
            for (const Tensor& input : inputs) moved.push_back(input.clone());
            double* element = moved[i].data<double>() + j;
            const double value = *element;
            *element = value + step;
            const double above = contracted(moved);
            *element = value - step;
            const double below = contracted(moved);
            const double expected = (above - below) / (2 * step);
            ASSERT_NEAR(gradient[j], expected, tolerance * (1 + scale)) << "input " << i << ", element " << j;
        }
    }
}

inline double relative_error(const Tensor& a, const Tensor& b) {
    const auto x = a.to_vector(), y = b.to_vector();
    double difference = 0, norm = 0;
    for (size_t i = 0; i < x.size(); ++i) {
        difference += (x[i] - y[i]) * (x[i] - y[i]);
        norm += y[i] * y[i];
    }
    return x.size() == y.size() ? std::sqrt(difference / (norm > 0 ? norm : 1)) : INFINITY;
}

// "fused == composed": the same values and the same gradients of every input, from the same random seeds.
inline void check_equal(const Function& fused, const Function& composed, const std::vector<Tensor>& inputs,
                        double tolerance = 1e-11) {
    std::vector<std::vector<Variable>> leaves(2);
    std::vector<std::vector<Tensor>> values(2);
    for (int side = 0; side < 2; ++side) {
        for (const Tensor& input : inputs) leaves[side].emplace_back(input.clone(), true);
        const std::vector<Variable> outputs = (side == 0 ? fused : composed)(leaves[side]);
        std::vector<Tensor> seeds;
        for (size_t i = 0; i < outputs.size(); ++i) {
            values[side].push_back(outputs[i].value().clone());
            seeds.push_back(
                random_tensor(outputs[i].shape(), "seed" + std::to_string(i), 1, outputs[i].dtype()));
        }
        backward(outputs, seeds);
    }
    ASSERT_EQ(values[0].size(), values[1].size());
    for (size_t i = 0; i < values[0].size(); ++i)
        EXPECT_LT(relative_error(values[0][i], values[1][i]), tolerance) << "output " << i;
    for (size_t i = 0; i < inputs.size(); ++i) {
        ASSERT_TRUE(leaves[0][i].gradient().defined() && leaves[1][i].gradient().defined()) << "input " << i;
        EXPECT_LT(relative_error(leaves[0][i].gradient(), leaves[1][i].gradient()), tolerance)
            << "input " << i;
    }
}

}  // namespace levin::test
