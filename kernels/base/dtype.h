// Element types and the bfloat16 number.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string>

namespace levin {

enum class DType : uint8_t { f64, f32, bf16, i64, i32, i16, i8, u16, u8 };

constexpr size_t size_of(DType type) {
    switch (type) {
        case DType::f64:
        case DType::i64:
            return 8;
        case DType::f32:
        case DType::i32:
            return 4;
        case DType::bf16:
        case DType::i16:
        case DType::u16:
            return 2;
        case DType::i8:
        case DType::u8:
            return 1;
    }
    return 0;
}

constexpr bool is_floating(DType type) {
    return type == DType::f64 || type == DType::f32 || type == DType::bf16;
}

// The type statistics, states, losses and accumulated gradients of `type` are kept in: f64 -> f64, else f32.
constexpr DType accumulator_of(DType type) { return type == DType::f64 ? DType::f64 : DType::f32; }

// "f64", "f32", "bf16", "i64", ...
std::string to_string(DType type);
// Inverse of to_string; throws Error(input) naming the known types.
DType dtype_from_string(const std::string& name);

// bfloat16: the upper half of a float32, rounded to nearest even.
struct bf16 {
    uint16_t bits = 0;

    bf16() = default;
    explicit constexpr bf16(float value) : bits(round(value)) {}
    explicit constexpr operator float() const { return std::bit_cast<float>(uint32_t{bits} << 16); }

private:
    static constexpr uint16_t round(float value) {
        const uint32_t raw = std::bit_cast<uint32_t>(value);
        if ((raw & 0x7fffffffu) > 0x7f800000u)
            return static_cast<uint16_t>((raw >> 16) | 0x40u);  // NaN stays NaN
        return static_cast<uint16_t>((raw + 0x7fffu + ((raw >> 16) & 1u)) >> 16);
    }
};

template <class T>
struct DTypeOf;
template <>
struct DTypeOf<double> {
    static constexpr DType value = DType::f64;
};
template <>
struct DTypeOf<float> {
    static constexpr DType value = DType::f32;
};
template <>
struct DTypeOf<bf16> {
    static constexpr DType value = DType::bf16;
};
template <>
struct DTypeOf<int64_t> {
    static constexpr DType value = DType::i64;
};
template <>
struct DTypeOf<int32_t> {
    static constexpr DType value = DType::i32;
};
template <>
struct DTypeOf<int16_t> {
    static constexpr DType value = DType::i16;
};
template <>
struct DTypeOf<int8_t> {
    static constexpr DType value = DType::i8;
};
template <>
struct DTypeOf<uint16_t> {
    static constexpr DType value = DType::u16;
};
template <>
struct DTypeOf<uint8_t> {
    static constexpr DType value = DType::u8;
};

// Arithmetic type of an element: double for f64, float for f32 and bf16.
template <class T>
struct Arithmetic {
    using type = float;
};
template <>
struct Arithmetic<double> {
    using type = double;
};
template <class T>
using arithmetic_t = typename Arithmetic<T>::type;

}  // namespace levin
