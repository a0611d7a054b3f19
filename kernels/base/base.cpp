#include <array>
#include <utility>

#include "kernels/base/dtype.h"
#include "kernels/base/error.h"
#include "kernels/base/stream.h"

namespace levin {

namespace {
constexpr std::array<std::pair<DType, const char*>, 9> kNames{{{DType::f64, "f64"},
                                                               {DType::f32, "f32"},
                                                               {DType::bf16, "bf16"},
                                                               {DType::i64, "i64"},
                                                               {DType::i32, "i32"},
                                                               {DType::i16, "i16"},
                                                               {DType::i8, "i8"},
                                                               {DType::u16, "u16"},
                                                               {DType::u8, "u8"}}};
}  // namespace

std::string to_string(DType type) {
    for (const auto& [known, name] : kNames)
        if (known == type) return name;
    return "unknown";
}

DType dtype_from_string(const std::string& name) {
    for (const auto& [type, known] : kNames)
        if (name == known) return type;
    fail(Fault::input, "dtype",
         "unknown element type '{}'; known are f64, f32, bf16, i64, i32, i16, i8, u16, u8", name);
}

std::string to_string(const Device& device) {
    return device.is_cpu() ? "cpu" : "cuda:" + std::to_string(device.index);
}

}  // namespace levin
