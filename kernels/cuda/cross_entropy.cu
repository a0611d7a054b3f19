// Softmax cross-entropy, one block per row: one sweep for maximum and sum, one that writes the gradient. The
// rows in flight about fit the L2 cache, so memory sees little more than one read and one write.
#include "kernels/backends.h"
#include "kernels/cuda/cross_entropy.cuh"
#include "kernels/cuda/sm90_bf16_cross_entropy.h"

namespace levin::kernels::cuda {

namespace {

constexpr int kThreads = 1024;  // two rows per multiprocessor: their second reading hits the L2 cache

template <class T, int N>
__global__ void __launch_bounds__(kThreads) cross_entropy_kernel(CrossEntropy args) {
    using A = acc_t<T>;
    const int64_t row = blockIdx.x;
    T* logits = static_cast<T*>(args.logits) + row * args.stride;
    const int64_t target = args.targets[row];
    A* loss = static_cast<A*>(args.loss);
    if (target < 0) {
        if (threadIdx.x == 0) loss[row] = A(0);
        if (args.gradient_scale != 0) clear_row<T, N>(logits, args.stride);
        return;
    }
    const RowLoss<T> result(softmax_sum<T, N>(logits, args.vocab), args.z_loss, args.gradient_scale);
    const A at_target = to_acc(logits[target]);
    __syncthreads();  // everybody has read the target before the gradient overwrites it
    if (threadIdx.x == 0) loss[row] = result.loss(at_target);
    if (args.gradient_scale != 0) write_gradient<T, N>(result, logits, args.vocab, args.stride, target);
}

}  // namespace

void cross_entropy(const Stream& stream, const CrossEntropy& args) {
    const cudaStream_t s = use(stream);
    if (args.rows <= 0) return;
    if (is_hopper(stream.device.index) && sm90_cross_entropy_fits(args))
        return sm90_bf16_cross_entropy(s, args);
    by_type(args.dtype, "cross_entropy", [&](auto tag) {
        using T = typename decltype(tag)::type;
        const bool vector = vectorizable<T>({{args.logits, args.stride}});
        auto* kernel = vector ? cross_entropy_kernel<T, kVector<T>> : cross_entropy_kernel<T, 1>;
        kernel<<<static_cast<unsigned>(args.rows), kThreads, 0, s>>>(args);
        LEVIN_CUDA_LAUNCHED();
    });
}

}  // namespace levin::kernels::cuda
