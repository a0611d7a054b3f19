// What every kernel test uses: buffers on the device under test, filled from and read back as float64.
// The device is LEVIN_TEST_DEVICE (cpu, the default, or cuda): each test program is registered once per
// device.
#pragma once

#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <cstdlib>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/base/dtype.h"
#include "kernels/base/error.h"
#include "kernels/base/stream.h"
#include "kernels/device_memory.h"
#include "tests/device.h"

namespace levin::kernels::test {

using levin::test::device;
inline Stream stream() { return default_stream(device()); }

// Owns memory on the device under test. Values go in and out as double; narrowing rounds to nearest even.
class Buffer {
public:
    Buffer(DType dtype, const std::vector<double>& values) : dtype_(dtype), count_(values.size()) {
        std::vector<char> host(bytes());
        for (size_t i = 0; i < count_; ++i) put(host.data(), i, values[i]);
        data_ = allocate(device(), bytes());
        copy_bytes(stream(), device(), data_, Device{}, host.data(), bytes());
    }
    // Filled with NaN (integers: 0x7f..): an output that the kernel does not write is seen.
    static Buffer poisoned(DType dtype, size_t count) {
        return Buffer(dtype, std::vector<double>(count, is_floating(dtype) ? std::nan("") : 0x7f));
    }
    Buffer(Buffer&& other) noexcept : dtype_(other.dtype_), count_(other.count_), data_(other.data_) {
        other.data_ = nullptr;
    }
    Buffer(const Buffer&) = delete;
    ~Buffer() {
        if (data_) release(device(), data_);
    }

    void* data() const { return data_; }
    // Pointer to element `index`.
    void* at(size_t index) const { return static_cast<char*>(data_) + index * size_of(dtype_); }
    template <class T>
    T* as() const {
        return static_cast<T*>(data_);
    }
    DType dtype() const { return dtype_; }
    size_t count() const { return count_; }

    std::vector<double> read() const {
        std::vector<char> host(bytes());
        synchronize(stream());
        copy_bytes(stream(), Device{}, host.data(), device(), data_, bytes());
        std::vector<double> values(count_);
        for (size_t i = 0; i < count_; ++i) values[i] = get(host.data(), i);
        return values;
    }

private:
    size_t bytes() const { return count_ * size_of(dtype_); }
    void put(char* host, size_t i, double value) const {
        switch (dtype_) {
            case DType::f64:
                reinterpret_cast<double*>(host)[i] = value;
                break;
            case DType::f32:
                reinterpret_cast<float*>(host)[i] = static_cast<float>(value);
                break;
            case DType::bf16:
                reinterpret_cast<bf16*>(host)[i] = bf16(static_cast<float>(value));
                break;
            case DType::i32:
                reinterpret_cast<int32_t*>(host)[i] = static_cast<int32_t>(value);
                break;
            default:
                FAIL() << "kernel tests use f64, f32, bf16 and i32 only";
        }
    }
    double get(const char* host, size_t i) const {
        switch (dtype_) {
            case DType::f64:
                return reinterpret_cast<const double*>(host)[i];
            case DType::f32:
                return reinterpret_cast<const float*>(host)[i];
            case DType::bf16:
                return static_cast<float>(reinterpret_cast<const bf16*>(host)[i]);
            case DType::i32:
                return reinterpret_cast<const int32_t*>(host)[i];
            default:
                return std::nan("");
        }
    }
    DType dtype_;
    size_t count_;
    void* data_ = nullptr;
};

// Fresh random numbers each run; the seed is printed by a failing test (SCOPED_TRACE) and can be set by
// LEVIN_TEST_SEED.
inline uint64_t seed() {
    static const uint64_t value = [] {
        const char* set = std::getenv("LEVIN_TEST_SEED");
        const uint64_t s = set ? std::strtoull(set, nullptr, 10) : std::random_device{}();
        ::testing::Test::RecordProperty("seed", std::to_string(s));
        return s;
    }();
    return value;
}
inline std::mt19937_64& generator() {
    static std::mt19937_64 engine(seed());
    return engine;
}
inline std::vector<double> random_normal(size_t count, double scale = 1) {
    std::normal_distribution<double> normal(0, scale);
    std::vector<double> values(count);
    for (double& value : values) value = normal(generator());
    return values;
}
// What `dtype` keeps of the values: references start from what the kernel really sees.
inline std::vector<double> rounded(DType dtype, std::vector<double> values) {
    for (double& v : values) {
        if (dtype == DType::f32) v = static_cast<float>(v);
        if (dtype == DType::bf16) v = static_cast<float>(bf16(static_cast<float>(v)));
    }
    return values;
}

// ||a - b|| / ||b||; NaN and infinity where a value is missing or wrong in kind.
inline double relative_error(const std::vector<double>& a, const std::vector<double>& b) {
    if (a.size() != b.size()) return std::numeric_limits<double>::infinity();
    double difference = 0, norm = 0;
    for (size_t i = 0; i < a.size(); ++i) {
        difference += (a[i] - b[i]) * (a[i] - b[i]);
        norm += b[i] * b[i];
    }
    return norm == 0 ? std::sqrt(difference) : std::sqrt(difference / norm);
}
// What of few numbers is summed must not cancel, or what is left has a large relative error.
inline std::vector<double> with_sign(double sign, std::vector<double> values) {
    for (double& value : values) value = std::copysign(value, sign);
    return values;
}
// Rows of `columns` values laid out `stride` apart; what lies between them is `gap`.
inline std::vector<double> spread(const std::vector<double>& values, size_t columns, size_t stride,
                                  double gap = 77) {
    std::vector<double> laid(values.size() / columns * stride, gap);
    for (size_t i = 0; i < values.size(); ++i) laid[i / columns * stride + i % columns] = values[i];
    return laid;
}
// The rows back out of it; a changed gap (a write outside of the matrix) is a failure.
inline std::vector<double> gather(const std::vector<double>& laid, size_t columns, size_t stride,
                                  double gap = 77) {
    std::vector<double> values;
    for (size_t i = 0; i < laid.size(); ++i) {
        if (i % stride < columns)
            values.push_back(laid[i]);
        else
            EXPECT_EQ(laid[i], gap) << "written outside of the rows, at " << i;
    }
    return values;
}
// Another number of CPU threads while it lives: what a kernel computes may not depend on it where its order
// is promised.
class Threads {
public:
    explicit Threads(int count) : before_(omp_get_max_threads()) { omp_set_num_threads(count); }
    Threads(const Threads&) = delete;
    ~Threads() { omp_set_num_threads(before_); }

private:
    int before_;
};
inline const std::vector<DType>& floating_types() {
    static const std::vector<DType> types{DType::f64, DType::f32, DType::bf16};
    return types;
}

// A bound that rounding alone explains, per type.
inline double tolerance(DType dtype) {
    return dtype == DType::f64 ? 1e-12 : dtype == DType::f32 ? 3e-6 : 1e-2;
}

}  // namespace levin::kernels::test
