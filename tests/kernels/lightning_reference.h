// Lightning attention as the token recurrence in float64, forward and in reverse: what the kernels are
// compared with.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels/lightning_attention.h"

namespace levin::kernels::test {

struct Lightning {
    int64_t batch = 1, length = 1, heads = 1, key_dim = 1, value_dim = 1;
    Activation qk_activation = Activation::none, v_activation = Activation::none;
    std::vector<double> slopes;  // [heads]
    std::vector<double> theta;   // [heads, key_dim] or empty
    int64_t first_position = 0;
    std::vector<double> borders;  // cu_seqlens or empty

    int64_t tokens() const { return batch * length; }
    int64_t key_width() const { return theta.empty() ? key_dim : 2 * key_dim; }
    int64_t sequences() const { return borders.empty() ? batch : static_cast<int64_t>(borders.size()) - 1; }
    int64_t begin(int64_t sequence) const {
        return borders.empty() ? sequence * length : static_cast<int64_t>(borders[sequence]);
    }
    int64_t end(int64_t sequence) const { return begin(sequence + 1); }
    // Place of a token in its row.
    int64_t position(int64_t token) const { return first_position + token % length; }
    int64_t q_count() const { return tokens() * heads * key_dim; }
    int64_t v_count() const { return tokens() * heads * value_dim; }
    int64_t state_count() const { return sequences() * heads * key_width() * value_dim; }
};
// Values are [tokens, heads, dim]; states as in the header; an empty state is zero.
struct LightningInputs {
    std::vector<double> q, k, v, d_o, initial_state, d_final_state;
};
struct LightningOutputs {
    std::vector<double> o, final_state, dq, dk, dv, d_initial_state, dtheta;
    std::vector<double>
        dtheta_terms;  // sum of the magnitudes of what dtheta sums: scale of its rounding error
};

inline std::pair<double, double> activation_reference(Activation activation, double x) {
    const double e = std::exp(std::min(x, 0.0)), s = 1 / (1 + std::exp(-x));
    switch (activation) {
        case Activation::none:
            return {x, 1};
        case Activation::silu:
            return {x * s, s * (1 + x * (1 - s))};
        case Activation::relu:
            return {std::max(x, 0.0), x > 0 ? 1 : 0};
        case Activation::leaky_relu:
            return {x > 0 ? x : 0.01 * x, x > 0 ? 1 : 0.01};
        case Activation::elu:
            return {x > 0 ? x : e - 1, x > 0 ? 1 : e};
        case Activation::one_plus_elu:
            return {x > 0 ? x + 1 : e, x > 0 ? 1 : e};
        case Activation::two_plus_elu:
            return {x > 0 ? x + 2 : e + 1, x > 0 ? 1 : e};
        case Activation::gelu: {
            const double below = 0.5 * std::erfc(-x / std::sqrt(2.0));
            return {x * below, below + x * std::exp(-x * x / 2) / std::sqrt(2 * M_PI)};
        }
        case Activation::sigmoid:
            return {s, s * (1 - s)};
        case Activation::exp:
            return {std::exp(x), std::exp(x)};
        case Activation::sine:
            return {std::sin(x), std::cos(x)};
    }
    return {std::nan(""), std::nan("")};
}
// Values and derivatives of rows of `width`; exp subtracts the maximum of its row, which counts as a
// constant.
inline std::pair<std::vector<double>, std::vector<double>> activate(Activation activation,
                                                                    const std::vector<double>& x,
                                                                    int64_t width) {
    std::vector<double> value(x.size()), derivative(x.size());
    for (size_t row = 0; row < x.size(); row += width) {
        double shift = 0;
        if (activation == Activation::exp)
            shift = *std::max_element(x.begin() + row, x.begin() + row + width);
        for (size_t i = row; i < row + width; ++i)
            std::tie(value[i], derivative[i]) = activation_reference(activation, x[i] - shift);
    }
    return {value, derivative};
}

// cos and sin of theta * position. In two parts whose products are exact in 64 bits of significand for a
// theta of 24.
inline std::pair<double, double> turn(double theta, int64_t position) {
    const int64_t low = position & 0xfffff, high = position - low;
    const long double a = static_cast<long double>(theta) * high, b = static_cast<long double>(theta) * low;
    return {std::cos(a) * std::cos(b) - std::sin(a) * std::sin(b),
            std::sin(a) * std::cos(b) + std::cos(a) * std::sin(b)};
}

inline LightningOutputs lightning_reference(const Lightning& p, const LightningInputs& in) {
    const int64_t kd = p.key_dim, vd = p.value_dim, width = p.key_width(), heads = p.heads;
    const auto [q, q_slope] = activate(p.qk_activation, in.q, kd);
    const auto [k, k_slope] = activate(p.qk_activation, in.k, kd);
    const auto [v, v_slope] = activate(p.v_activation, in.v, vd);
    LightningOutputs out;
    out.o.assign(p.v_count(), 0);
    out.dv = out.o;
    out.dq.assign(p.q_count(), 0);
    out.dk = out.dq;
    out.final_state.assign(p.state_count(), 0);
    out.d_initial_state = out.final_state;
    out.dtheta.assign(p.theta.size(), 0);
    out.dtheta_terms = out.dtheta;

    std::vector<std::pair<double, double>> turns;  // [length, heads, key_dim]
    if (!p.theta.empty())
        for (int64_t t = 0; t < p.length; ++t)
            for (const double theta : p.theta) turns.push_back(turn(theta, p.first_position + t));
    const auto turn_of = [&](int64_t token, int64_t head, int64_t c) {
        return turns[((token % p.length) * heads + head) * kd + c];
    };
    const auto encode = [&](const std::vector<double>& x, int64_t token, int64_t head) {
        std::vector<double> y(width);
        for (int64_t c = 0; c < kd; ++c) {
            const double value = x[(token * heads + head) * kd + c];
            if (p.theta.empty()) {
                y[c] = value;
            } else {
                const auto [co, si] = turn_of(token, head, c);
                y[c] = value * co, y[kd + c] = value * si;
            }
        }
        return y;
    };
    // Gradient of the encoded row -> of the raw row, and of theta.
    const auto decode = [&](const std::vector<double>& d, const std::vector<double>& x,
                            const std::vector<double>& slope, int64_t token, int64_t head,
                            std::vector<double>& dx) {
        for (int64_t c = 0; c < kd; ++c) {
            const int64_t i = (token * heads + head) * kd + c;
            double gradient = d[c];
            if (!p.theta.empty()) {
                const auto [co, si] = turn_of(token, head, c);
                gradient = d[c] * co + d[kd + c] * si;
                const double time = static_cast<double>(p.position(token));
                out.dtheta[head * kd + c] += time * x[i] * (d[kd + c] * co - d[c] * si);
                out.dtheta_terms[head * kd + c] +=
                    time * std::abs(x[i]) * (std::abs(d[kd + c] * co) + std::abs(d[c] * si));
            }
            dx[i] = gradient * slope[i];
        }
    };
    for (int64_t sequence = 0; sequence < p.sequences(); ++sequence)
        for (int64_t head = 0; head < heads; ++head) {
            const double decay = std::exp(-p.slopes[head]);
            const int64_t offset = (sequence * heads + head) * width * vd;
            std::vector<double> state(width * vd, 0), d_state(width * vd, 0);
            if (!in.initial_state.empty())
                std::copy_n(in.initial_state.begin() + offset, width * vd, state.begin());
            if (!in.d_final_state.empty())
                std::copy_n(in.d_final_state.begin() + offset, width * vd, d_state.begin());
            for (int64_t t = p.begin(sequence); t < p.end(sequence); ++t) {
                const auto query = encode(q, t, head), key = encode(k, t, head);
                std::vector<double> d_query(width, 0);
                for (int64_t c = 0; c < width; ++c)
                    for (int64_t e = 0; e < vd; ++e) {
                        const int64_t i = (t * heads + head) * vd + e;
                        double& s = state[c * vd + e];
                        s = decay * s + key[c] * v[i];
                        out.o[i] += query[c] * s;
                        d_query[c] += s * in.d_o[i];
                    }
                decode(d_query, q, q_slope, t, head, out.dq);
            }
            std::copy(state.begin(), state.end(), out.final_state.begin() + offset);
            for (int64_t t = p.end(sequence) - 1; t >= p.begin(sequence); --t) {
                const auto query = encode(q, t, head), key = encode(k, t, head);
                std::vector<double> d_key(width, 0);
                for (int64_t c = 0; c < width; ++c)
                    for (int64_t e = 0; e < vd; ++e) {
                        const int64_t i = (t * heads + head) * vd + e;
                        double& d = d_state[c * vd + e];
                        d += query[c] * in.d_o[i];
                        d_key[c] += d * v[i];
                        out.dv[i] += d * key[c] * v_slope[i];
                        d *= decay;
                    }
                decode(d_key, k, k_slope, t, head, out.dk);
            }
            std::copy(d_state.begin(), d_state.end(), out.d_initial_state.begin() + offset);
        }
    return out;
}

}  // namespace levin::kernels::test
