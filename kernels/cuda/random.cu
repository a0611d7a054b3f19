// Normal random numbers: the arithmetic of kernels/random.h, one number a thread at a time.
#include "kernels/backends.h"
#include "kernels/cuda/element.cuh"
#include "kernels/random.h"

namespace levin::kernels::cuda {

namespace {

template <class T>
__global__ void fill_normal_kernel(const FillNormal args) {
    const int64_t count = args.rows * args.columns;
    for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count;
         i += int64_t{gridDim.x} * blockDim.x) {
        const int64_t row = i / args.columns, column = i % args.columns;
        const uint64_t index =
            args.first + static_cast<uint64_t>(row) * args.row_step + static_cast<uint64_t>(column);
        const random::Words words =
            random::philox({static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), args.stream[0],
                            args.stream[1]},
                           args.key[0], args.key[1]);
        static_cast<T*>(args.x)[row * args.x_stride + column] =
            from_acc<T>(static_cast<acc_t<T>>(args.deviation * random::normal(words)));
    }
}

}  // namespace

void fill_normal(const Stream& stream, const FillNormal& args) {
    if (args.rows <= 0 || args.columns <= 0) return;
    const cudaStream_t handle = use(stream);
    const int64_t blocks = ceil_div(args.rows * args.columns, 256);
    by_type(args.dtype, "fill_normal", [&](auto tag) {
        fill_normal_kernel<typename decltype(tag)::type>
            <<<static_cast<unsigned>(blocks < 8192 ? blocks : 8192), 256, 0, handle>>>(args);
    });
    LEVIN_CUDA_LAUNCHED();
}

}  // namespace levin::kernels::cuda
