#include "kernels/cuda/tensor_map.h"

#include "kernels/base/error.h"
#include "kernels/cuda/driver.h"

namespace levin::kernels::cuda {

namespace {

// Tensor maps are made by the driver.
auto encoder() {
    using Encode = decltype(&cuTensorMapEncodeTiled);
    static const auto encode = reinterpret_cast<Encode>(driver_function("cuTensorMapEncodeTiled"));
    return encode;
}

}  // namespace

CUtensorMap panel_map(const void* data, int64_t stride, int64_t batch, int64_t length, int64_t heads,
                      int64_t width, int box_rows) {
    const cuuint32_t box[] = {64, 1, static_cast<cuuint32_t>(box_rows), 1};
    constexpr cuuint32_t kSteps[] = {1, 1, 1, 1};
    const auto size = [](int64_t n) { return static_cast<cuuint64_t>(n); };
    const cuuint64_t sizes[] = {size(width), size(heads), size(length), size(batch)};
    const cuuint64_t strides[] = {size(width * 2), size(stride * 2), size(length * stride * 2)};
    CUtensorMap map;
    const CUresult result =
        encoder()(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, const_cast<void*>(data), sizes, strides, box,
                  kSteps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                  CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    LEVIN_CHECK(result == CUDA_SUCCESS, "cuda",
                "no tensor map for batch {}, length {}, heads {}, width {}, stride {} (driver error {})",
                batch, length, heads, width, stride, static_cast<int>(result));
    return map;
}

}  // namespace levin::kernels::cuda
