// Inline arithmetic that the compiler turns into vector code: element loads and stores, and exp, expm1,
// sigmoid, sine and the normal distribution in float. The library's versions are calls, which stop a loop
// from being vectorised; these are branch-free and right to a few units in the last place. Doubles go to the
// library: there accuracy counts. The polynomials were fitted for levin at Chebyshev nodes in 40-digit
// arithmetic.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "kernels/base/dtype.h"

// Past some size of a source file the compiler stops inlining, and a call left in a loop keeps it scalar.
#define LEVIN_INLINE [[gnu::always_inline]] inline

namespace levin::kernels::cpu {

// An element in its arithmetic type, and back (bf16: rounded to nearest even).
LEVIN_INLINE double load(double x) { return x; }
LEVIN_INLINE float load(float x) { return x; }
LEVIN_INLINE float load(bf16 x) { return static_cast<float>(x); }

template <class T>
LEVIN_INLINE T narrow(arithmetic_t<T> x) {
    return static_cast<T>(x);
}
// Without the early return of bf16's constructor, which the vectoriser does not see through.
template <>
LEVIN_INLINE bf16 narrow<bf16>(float x) {
    const uint32_t raw = std::bit_cast<uint32_t>(x);
    const uint32_t rounded = (raw + 0x7fffu + ((raw >> 16) & 1u)) >> 16;
    const uint32_t nan = (raw >> 16) | 0x40u;
    bf16 result;
    result.bits = static_cast<uint16_t>((raw & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
    return result;
}

// What narrow<T> keeps of x, in arithmetic type: for loops that need the rounded number and would keep a
// bf16, which is a struct, in memory instead of a vector register.
template <class T>
LEVIN_INLINE arithmetic_t<T> round_to(arithmetic_t<T> x) {
    return load(narrow<T>(x));
}

namespace detail {

// x = n ln 2 + r with |r| <= ln 2 / 2. Adding 1.5 * 2^23 leaves the rounded quotient in the low bits: no
// conversion instruction that would be undefined for NaN.
struct Reduced {
    float r;
    int32_t n;
};
LEVIN_INLINE Reduced reduce_by_ln2(float x) {
    constexpr float shift = 12582912.0f, log2e = 1.44269504f, ln2_high = 0x1.62e4p-1f,
                    ln2_low = 0x1.7f7d1cp-20f;
    const float shifted = x * log2e + shift;
    const float n = shifted - shift;
    return {(x - n * ln2_high) - n * ln2_low,
            static_cast<int32_t>(std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(shift))};
}
LEVIN_INLINE float power_of_two(int32_t n) {
    return std::bit_cast<float>(static_cast<uint32_t>(n + 127) << 23);
}

// (e^r - 1 - r) / r^2
LEVIN_INLINE float exp_tail(float r) {
    float p = 0x1.6d10fcp-10f;
    p = p * r + 0x1.120b62p-7f;
    p = p * r + 0x1.55551ap-5f;
    p = p * r + 0x1.5554dep-3f;
    return p * r + 0.5f;
}

// sin(r) for |r| <= pi / 2
LEVIN_INLINE float sine_reduced(float r) {
    const float z = r * r;
    float p = -0x1.9db1ccp-26f;
    p = p * z + 0x1.719692p-19f;
    p = p * z - 0x1.a01906p-13f;
    p = p * z + 0x1.111110p-7f;
    p = p * z - 0x1.555556p-3f;
    return r + r * z * p;
}

// sin(x + half_turns * pi), with x reduced in double: exact enough for any |x| < 2^50.
LEVIN_INLINE float sine_shifted(float x, double half_turns) {
    constexpr double shift = 0x1.8p52, pi_high = 0x1.921fb54442d18p+1, pi_low = 0x1.1a62633145c07p-53;
    const double shifted = x * 0.31830988618379067 + half_turns + shift;
    const double n = shifted - shift, m = n - half_turns;
    const float s = sine_reduced(static_cast<float>((x - m * pi_high) - m * pi_low));
    const uint32_t odd = static_cast<uint32_t>(std::bit_cast<uint64_t>(shifted)) << 31;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(s) ^ odd);
}

}  // namespace detail

LEVIN_INLINE double fast_exp(double x) { return std::exp(x); }
LEVIN_INLINE float fast_exp(float x) {
    // The bounds give 0 and infinity, and let NaN through; 2^n in two factors, as n may leave the range of
    // one.
    x = x < -104.0f ? -104.0f : x;
    x = x > 89.0f ? 89.0f : x;
    const auto [r, n] = detail::reduce_by_ln2(x);
    const float p = 1.0f + (r + r * r * detail::exp_tail(r));
    const int32_t half = n >> 1;
    return p * detail::power_of_two(half) * detail::power_of_two(n - half);
}

// e^x - 1 for x <= 0 (other x: not used, not promised).
LEVIN_INLINE double fast_expm1(double x) { return std::expm1(x); }
LEVIN_INLINE float fast_expm1(float x) {
    x = x < -80.0f ? -80.0f : x;
    x = x > 80.0f ? 80.0f : x;
    const auto [r, n] = detail::reduce_by_ln2(x);
    const float s = detail::power_of_two(n);
    return s * (r + r * r * detail::exp_tail(r)) + (s - 1.0f);
}

template <class T>
LEVIN_INLINE T fast_sigmoid(T x) {
    return T(1) / (T(1) + fast_exp(-x));
}

LEVIN_INLINE double fast_sin(double x) { return std::sin(x); }
LEVIN_INLINE double fast_cos(double x) { return std::cos(x); }
LEVIN_INLINE float fast_sin(float x) { return detail::sine_shifted(x, 0.0); }
LEVIN_INLINE float fast_cos(float x) { return detail::sine_shifted(x, 0.5); }

// Standard normal distribution: `below` = P(X <= x), `density` at x. The float form keeps its relative
// accuracy in the left tail, where 1 + erf cancels: P = exp(-x^2/2) * erfcx(|x|/sqrt 2) / 2, erfcx fitted as
// a polynomial in w = 1 / (1 + |x|/4).
template <class T>
struct Normal {
    T below, density;
};
LEVIN_INLINE Normal<double> normal_distribution(double x) {
    return {0.5 * std::erfc(-x * 0.70710678118654752), 0.39894228040143268 * std::exp(-0.5 * x * x)};
}
LEVIN_INLINE Normal<float> normal_distribution(float x) {
    float a = x < 0.0f ? -x : x;
    a = a > 20.0f ? 20.0f : a;
    const float square = a * a;
    const float lost = std::fma(a, a, -square);  // exp would magnify the rounding of the square
    const float e = fast_exp(-0.5f * square) * (1.0f - 0.5f * lost);
    const float w = 1.0f / (1.0f + 0.25f * a);
    float p = 0x1.01ea14p-5f;
    p = p * w - 0x1.de2cd2p-4f;
    p = p * w + 0x1.54b30ep-4f;
    p = p * w + 0x1.52e296p-4f;
    p = p * w + 0x1.3a9eacp-8f;
    p = p * w + 0x1.788dcap-3f;
    p = p * w + 0x1.1fd676p-3f;
    p = p * w + 0x1.88a80cp-3f;
    p = p * w + 0x1.975ca0p-3f;
    p = p * w + 0x1.989334p-3f;
    const float tail = 0.5f * e * w * p;
    return {x > 0.0f ? 1.0f - tail : tail, 0.39894228f * e};
}

}  // namespace levin::kernels::cpu
