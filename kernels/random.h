// Normal random numbers from counters. The arithmetic of one number is here, for both back ends: integers,
// IEEE operations and explicit fma alone, no library function and no product that a compiler could join with
// a sum. So a number has the same bits on every device, at any vector width and with any C library.
#pragma once

#include <bit>
#include <cmath>

#include "kernels/kernel.h"

namespace levin::kernels {

// x[r,c] = (x's type) deviation * normal(first + r * row_step + c), f64, f32 or bf16 (rounded by way of f32).
struct FillNormal {
    int64_t rows, columns;
    uint32_t key[2], stream[2];  // of the random numbers
    uint64_t first, row_step;
    double deviation;
    DType dtype;
    void* x;
    int64_t x_stride;
};
void fill_normal(const Stream& stream, const FillNormal& args);

#ifdef __CUDACC__
#define LEVIN_ON_BOTH __host__ __device__ inline
#define LEVIN_UNROLL
#else
#define LEVIN_ON_BOTH [[gnu::always_inline]] inline
#define LEVIN_UNROLL _Pragma("GCC unroll 10")  // a loop in a loop is not made vector code
#endif

namespace random {

struct Words {
    uint32_t a, b, c, d;
};

// Ten rounds of Philox 4x32 (Salmon et al. 2011).
LEVIN_ON_BOTH Words philox(Words counter, uint32_t key, uint32_t other_key) {
    LEVIN_UNROLL
    for (int round = 0; round < 10; ++round) {
        const uint64_t p = uint64_t{0xD2511F53} * counter.a, q = uint64_t{0xCD9E8D57} * counter.c;
        counter = {static_cast<uint32_t>(q >> 32) ^ counter.b ^ key, static_cast<uint32_t>(q),
                   static_cast<uint32_t>(p >> 32) ^ counter.d ^ other_key, static_cast<uint32_t>(p)};
        key += 0x9E3779B9u;
        other_key += 0xBB67AE85u;
    }
    return counter;
}

// The upper 53 of 64 bits as a number below 2^53. A word beside the exponent of 2^52 is a number: no
// conversion instruction, which vectors of 64-bit integers mostly lack.
LEVIN_ON_BOTH double bits_53(uint32_t low, uint32_t high) {
    const double upper = std::bit_cast<double>(0x4330000000000000u | high) - 0x1p52;
    const double lower = std::bit_cast<double>(0x4330000000000000u | (low >> 11)) - 0x1p52;
    return std::fma(upper, 0x1p21, lower);
}

// ln x for x in (0, 1], to an ulp: x = 2^k m, 1/sqrt 2 <= m < sqrt 2, and with f = m - 1, s = f / (2 + f), z
// = s^2 it is ln m = 2 artanh s = f - s (f - (2/3 z + 2/5 z^2 + ..)). Coefficients fitted at Chebyshev nodes
// in 50 digits.
LEVIN_ON_BOTH double log(double x) {
    constexpr uint64_t root = 0x3fe6a09e667f3bcd;  // sqrt(1/2)
    const uint64_t shifted = std::bit_cast<uint64_t>(x) + (0x3ff0000000000000u - root);
    const double k = std::bit_cast<double>(0x4330000000000000u | (shifted >> 52)) - (0x1p52 + 1023);
    const double f = std::bit_cast<double>((shifted & 0x000fffffffffffffu) + root) - 1;
    const double s = f / (2 + f), z = s * s;
    double t = 0x1.2b584abe1acc3p-3;
    t = std::fma(t, z, 0x1.39fe6063c42c6p-3);
    t = std::fma(t, z, 0x1.7462b4ab3d096p-3);
    t = std::fma(t, z, 0x1.c71c62e57fca7p-3);
    t = std::fma(t, z, 0x1.2492492df1491p-2);
    t = std::fma(t, z, 0x1.99999999952e2p-2);
    t = std::fma(t, z, 0x1.5555555555558p-1);
    const double of_m = std::fma(-s, std::fma(-t, z, f), f);
    return std::fma(k, 0x1.62e42fefa39efp-1, std::fma(k, 0x1.abc9e3b39803fp-56, of_m));
}

// cos x for x in [0, 2 pi], to an ulp: x = n pi/2 + r, |r| <= pi/4. n pi/2 loses nothing: the upper part of
// pi/2 ends in three zero bits.
LEVIN_ON_BOTH double cos(double x) {
    const double shifted = std::fma(x, 0.63661977236758134, 0x1.8p52), n = shifted - 0x1.8p52;
    const double r = std::fma(n, -0x1.1a62633145c07p-54, std::fma(n, -0x1.921fb54442d18p+0, x));
    const double z = r * r;
    double p = 0x1.5e0b19f89bc2ep-33;
    p = std::fma(p, z, -0x1.ae600b02b5dd2p-26);
    p = std::fma(p, z, 0x1.71de37968a0fbp-19);
    p = std::fma(p, z, -0x1.a01a019e83aaep-13);
    p = std::fma(p, z, 0x1.1111111110bb2p-7);
    p = std::fma(p, z, -0x1.5555555555555p-3);
    const double sine = std::fma(r * z, p, r);
    double q = -0x1.907da3138d5b8p-37;
    q = std::fma(q, z, 0x1.1eeb68e8acbf7p-29);
    q = std::fma(q, z, -0x1.27e4fa17d959ep-22);
    q = std::fma(q, z, 0x1.a01a019f4eaf5p-16);
    q = std::fma(q, z, -0x1.6c16c16c16967p-10);
    q = std::fma(q, z, 0x1.5555555555555p-5);
    const double rest = std::fma(z, -0.5, 1.0), lost = std::fma(z, -0.5, 1.0 - rest);
    const double cosine = rest + std::fma(z * z, q, lost);
    const uint64_t quarter = std::bit_cast<uint64_t>(shifted);
    const double value = (quarter & 1) != 0 ? sine : cosine;
    // Minus in the second and third quarter: cos, -sin, -cos, sin.
    return std::bit_cast<double>(std::bit_cast<uint64_t>(value) ^ ((quarter + 1) & 2) << 62);
}

// A number of mean 0 and variance 1 (Box and Muller).
LEVIN_ON_BOTH double normal(const Words& words) {
    const double u = (bits_53(words.a, words.b) + 1) * 0x1p-53, v = bits_53(words.c, words.d) * 0x1p-53;
    return std::sqrt(-2 * log(u)) * cos(6.2831853071795862 * v);
}

}  // namespace random

#undef LEVIN_ON_BOTH
#undef LEVIN_UNROLL

}  // namespace levin::kernels
