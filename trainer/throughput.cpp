#include "trainer/throughput.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "core/random.h"
#include "kernels/device_memory.h"
#include "kernels/gemm.h"

namespace levin {

double measure_gemm_rate(const Device& device, DType dtype, int64_t size, int repeats) {
    Tensor a = Tensor::empty({size, size}, dtype, device), b = Tensor::empty({size, size}, dtype, device);
    Tensor c = Tensor::empty({size, size}, dtype, device);
    fill_normal(a, Random(1, "gemm.a"), 1);
    fill_normal(b, Random(1, "gemm.b"), 1);
    double best = 0;
    for (int i = 0; i <= repeats; ++i) {  // the first run is a warm-up
        const auto start = std::chrono::steady_clock::now();
        kernels::gemm(a.stream(), {.transpose_b = true,
                                   .m = size,
                                   .n = size,
                                   .k = size,
                                   .dtype = dtype,
                                   .c_dtype = dtype,
                                   .a = a.data(),
                                   .lda = size,
                                   .b = b.data(),
                                   .ldb = size,
                                   .c = c.data(),
                                   .ldc = size});
        kernels::synchronize(a.stream());
        const double seconds =
            std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        const auto n = static_cast<double>(size);
        if (i > 0) best = std::max(best, 2 * n * n * n / seconds);
    }
    return best;
}

DevicePeak device_peak(const Device& device, DType dtype) {
    if (device.is_cuda() && dtype == DType::bf16) {
        const std::string name = kernels::cuda_device_info(device.index).name;
        for (const auto& [part, rate] :
             {std::pair{"H100 PCIe", 756e12}, {"H100", 989e12}, {"H200", 989e12}, {"A100", 312e12}})
            if (name.find(part) != std::string::npos)
                return {rate, fmt::format("data sheet, {} bf16 dense", part)};
    }
    const int64_t size = device.is_cuda() ? 8192 : dtype == DType::f64 ? 512 : 1536;
    return {measure_gemm_rate(device, dtype, size, 4),
            fmt::format("measured, {} GEMM {}^3", to_string(dtype), size)};
}

}  // namespace levin
