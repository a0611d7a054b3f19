// Cosine and sine of frequency * position for neighbouring positions: what LRPE and RoPE turn by.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cpu/scratch.h"

namespace levin::kernels::cpu {

// The product frequency * position is kept exactly (its rounding error is turned by separately, the library
// reduces the rest exactly), so the angle is right to 1e-15 rad at any position. From there one complex
// product in float64 leads from a position to the next; its error grows by 1e-16 a step.
class Rotation {
public:
    // `frequency` [count], any floating type.
    template <class R>
    Rotation(Scratch& scratch, const R* frequency, int64_t count)
        : count_(count),
          frequency_(scratch.take<double>(count)),
          cos_(scratch.take<double>(count)),
          sin_(scratch.take<double>(count)),
          step_cos_(scratch.take<double>(count)),
          step_sin_(scratch.take<double>(count)) {
        for (int64_t c = 0; c < count; ++c) {
            frequency_[c] = static_cast<double>(frequency[c]);
            step_cos_[c] = std::cos(frequency_[c]);
            step_sin_[c] = std::sin(frequency_[c]);
        }
    }

    void seek(int64_t position) {
        const double t = static_cast<double>(position);
        for (int64_t c = 0; c < count_; ++c) {
            const double angle = frequency_[c] * t, rest = std::fma(frequency_[c], t, -angle);
            const double co = std::cos(angle), si = std::sin(angle), rest_co = std::cos(rest),
                         rest_si = std::sin(rest);
            cos_[c] = co * rest_co - si * rest_si;
            sin_[c] = si * rest_co + co * rest_si;
        }
    }
    // direction +1: the next position, -1: the one before.
    void step(int direction) {
        const double sign = direction;
        for (int64_t c = 0; c < count_; ++c) {
            const double co = cos_[c], si = sin_[c], step_si = sign * step_sin_[c];
            cos_[c] = co * step_cos_[c] - si * step_si;
            sin_[c] = si * step_cos_[c] + co * step_si;
        }
    }
    const double* cos() const { return cos_; }
    const double* sin() const { return sin_; }

private:
    int64_t count_;
    double *frequency_, *__restrict cos_, *__restrict sin_, *__restrict step_cos_, *__restrict step_sin_;
};

}  // namespace levin::kernels::cpu
