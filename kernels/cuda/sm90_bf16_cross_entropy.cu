// Softmax cross-entropy where a row is read once and written once: a cluster of blocks holds it in registers.
// Each block has its part of the columns and tells the others their maximum and sum. Several blocks share a
// multiprocessor, so that one row is read while another is written.
#include <cooperative_groups.h>

#include "kernels/cuda/cross_entropy.cuh"
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/sm90_bf16_cross_entropy.h"

namespace levin::kernels::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kHeld = 4;        // vectors of a thread; more make the compiler spill
constexpr int kMostBlocks = 8;  // of a cluster, on every Hopper
constexpr int kWidth = kVector<Bf16>;

// Two logits of which `inside` count: the others become -infinity.
[[maybe_unused]] __device__ unsigned first_of_two(unsigned two, int inside) {
    return inside >= 2 ? two : inside == 1 ? (two & 0xffff) | 0xff800000 : 0xff80ff80;
}

// `share`: vectors of each block but the last.
__global__ void __launch_bounds__(kThreads, 1024 / kThreads)
    row_in_registers_kernel(CrossEntropy args, int share) {
#if __CUDA_ARCH__ >= 900
    __shared__ SoftmaxSum<float> sums[kMostBlocks];
    const auto cluster = cooperative_groups::this_cluster();
    const unsigned part = cluster.block_rank(), parts = cluster.num_blocks();
    const int64_t row = blockIdx.x / parts;
    const int first = static_cast<int>(part) * share * kWidth;
    Bf16* whole = static_cast<Bf16*>(args.logits) + row * args.stride;
    Bf16* logits = whole + first;
    const int vectors = min(share, static_cast<int>(args.stride / kWidth) - static_cast<int>(part) * share);
    const int vocab = static_cast<int>(args.vocab) - first, target = args.targets[row];
    float* loss = static_cast<float*>(args.loss) + row;
    if (target < 0) {  // for the whole cluster
        if (part == 0 && threadIdx.x == 0) *loss = 0;
        if (args.gradient_scale != 0) clear_row<Bf16, kWidth>(logits, vectors * kWidth);
        return;
    }
    cluster.barrier_arrive();  // a block may be told something once it runs
    const float at_target = to_acc(whole[target]);
    Held<Bf16> held[kHeld];
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
        const int v = static_cast<int>(threadIdx.x) + j * kThreads;
        if (v < vectors) held[j].bits = *reinterpret_cast<const uint4*>(logits + v * kWidth);
        const int inside = v < vectors ? vocab - v * kWidth : 0;
        if (inside < kWidth) {
            held[j].bits.x = first_of_two(held[j].bits.x, inside);
            held[j].bits.y = first_of_two(held[j].bits.y, inside - 2);
            held[j].bits.z = first_of_two(held[j].bits.z, inside - 4);
            held[j].bits.w = first_of_two(held[j].bits.w, inside - 6);
        }
    }
    __nv_bfloat162 top = __float2bfloat162_rn(-INFINITY);
#pragma unroll
    for (int j = 0; j < kHeld; ++j)
        for (const unsigned two : {held[j].bits.x, held[j].bits.y, held[j].bits.z, held[j].bits.w})
            top = __hmax2(top, *reinterpret_cast<const __nv_bfloat162*>(&two));
    float most = max(__low2float(top), __high2float(top)), sum = 0;
    most = block_max(most);
#pragma unroll
    for (Held<Bf16>& one : held) one.forget();
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
        const auto z = unpack(held[j].raw);
        if (most > -INFINITY)
#pragma unroll
            for (int i = 0; i < kWidth; ++i) sum += exponential<Bf16>(z[i] - most);
        else
#pragma unroll
            for (int i = 0; i < kWidth; ++i) sum += z[i] != z[i] ? z[i] : 0.f;  // NaN is not hidden
    }
    sum = block_sum(sum);
#pragma unroll
    for (Held<Bf16>& one : held) one.forget();
    cluster.barrier_wait();
    if (threadIdx.x < parts) *cluster.map_shared_rank(&sums[part], threadIdx.x) = {most, sum};
    cluster.sync();  // also: everybody has read the target
    const RowLoss<Bf16> result(join<float>(parts, [&](int64_t p) { return sums[p]; }), args.z_loss,
                               args.gradient_scale);
    if (part == 0 && threadIdx.x == 0) *loss = result.loss(at_target);
    if (args.gradient_scale == 0) return;
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
        const int v = static_cast<int>(threadIdx.x) + j * kThreads;
        if (v >= vectors) continue;
        auto z = unpack(held[j].raw);
#pragma unroll
        for (int i = 0; i < kWidth; ++i) z[i] = result.gradient(z[i]);
        store<kWidth>(logits + v * kWidth, z);
    }
    const int place = target - first;
    if (place >= 0 && place < vectors * kWidth && place / kWidth % kThreads == static_cast<int>(threadIdx.x))
        logits[place] = from_acc<Bf16>(result.gradient_at_target(at_target));  // after its own vector
#endif
}

}  // namespace

bool sm90_cross_entropy_fits(const CrossEntropy& args) {
    const int64_t vectors = args.stride / kWidth;
    return args.dtype == DType::bf16 && vectorizable<Bf16>({{args.logits, args.stride}}) && vectors >= 1024 &&
           vectors <= kMostBlocks * kHeld * kThreads;
}

void sm90_bf16_cross_entropy(cudaStream_t stream, const CrossEntropy& args) {
    const int64_t vectors = args.stride / kWidth;
    unsigned blocks = 1;
    while (blocks * kHeld * kThreads < vectors) blocks *= 2;
    launch_dependent(stream,
                     {.grid = dim3(static_cast<unsigned>(args.rows) * blocks),
                      .threads = kThreads,
                      .shared = 0,
                      .cluster = blocks},
                     row_in_registers_kernel, args, static_cast<int>(ceil_div(vectors, blocks)));
}

}  // namespace levin::kernels::cuda
