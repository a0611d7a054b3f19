// Sine and cosine of frequency * position, exact at any position: the product is formed in twice float64's
// digits and reduced before it is rounded to the accumulator type.
#pragma once

#include <cstdint>

namespace levin::kernels::cuda {

// (frequency * position) mod 2 pi, within about pi of zero.
__device__ inline double reduced_angle(double frequency, int64_t position) {
    constexpr double kTwoPiHigh = 6.283185307179586232, kTwoPiLow = 2.4492935982947064e-16;
    const double t = static_cast<double>(position);
    const double high = frequency * t, low = fma(frequency, t, -high);
    const double turns = rint(high * 0.15915494309189533577);
    return fma(-turns, kTwoPiHigh, high) + fma(-turns, kTwoPiLow, low);
}

__device__ inline void sine_cosine(double frequency, int64_t position, float* sine, float* cosine) {
    sincosf(static_cast<float>(reduced_angle(frequency, position)), sine, cosine);
}
__device__ inline void sine_cosine(double frequency, int64_t position, double* sine, double* cosine) {
    sincos(reduced_angle(frequency, position), sine, cosine);
}

}  // namespace levin::kernels::cuda
