// What the tests of this room share.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "checkpoint/file.h"
#include "core/tensor.h"
#include "kernels/base/error.h"
#include "tests/temporary_folder.h"

namespace levin {

// A folder of its own for each test, removed at the end.
class FolderTest : public testing::Test {
protected:
    std::string path(const std::string& name) const { return temporary_ / name; }

    const test::TemporaryFolder temporary_;
    const std::filesystem::path folder_ = temporary_.path();
};

inline std::string golden(const std::string& name) {
    const char* root = std::getenv("LEVIN_SOURCE_DIR");
    return std::string(root ? root : ".") + "/tests/golden/" + name;
}

inline std::string source_file(const std::string& name) {
    const char* root = std::getenv("LEVIN_SOURCE_DIR");
    return std::string(root ? root : ".") + "/" + name;
}

inline void put(const std::string& path, const std::string& bytes) {
    std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

// The message of the Error(input) that `work` throws; a failure when it throws none.
template <class Work>
std::string refusal(const Work& work) {
    try {
        work();
    } catch (const Error& error) {
        EXPECT_EQ(error.fault(), Fault::input) << error.what();
        return error.what();
    }
    ADD_FAILURE() << "nothing was refused";
    return {};
}

// Numbers of every kind of bit pattern a weight can have.
inline Tensor sample(const Shape& shape, DType dtype, unsigned seed) {
    Tensor value = Tensor::empty(shape, dtype);
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < value.count(); ++i) {
        const float number = normal(random);
        switch (dtype) {
            case DType::f64:
                value.data<double>()[i] = static_cast<double>(number) / 3;
                break;
            case DType::f32:
                value.data<float>()[i] = number;
                break;
            case DType::bf16:
                value.data<bf16>()[i] = bf16(number);
                break;
            default:
                value.data<int32_t>()[i] = static_cast<int32_t>(random());
                break;
        }
    }
    return value;
}

inline std::string bits(const Tensor& value) {
    return std::string(static_cast<const char*>(value.data()), value.bytes());
}

inline bool same_bits(const Tensor& a, const Tensor& b) {
    return a.dtype() == b.dtype() && a.shape() == b.shape() && bits(a) == bits(b);
}

}  // namespace levin
