// A kernel of few instructions, without ragged ends or a choice of activations. States are read and written
// once a step, so they need not stay in the cache; said so to the stores, a step of 64 sequences takes 1.94
// ms on an H100, with plain ones 2.04.
#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/bf16_decode_attention.h"
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/element.cuh"

namespace levin::kernels::cuda {

namespace {

// A block owns 32 columns of one head's state; 8 threads cover them, 32 rows at a time.
constexpr int kThreads = 256, kWarps = kThreads / 32, kColumns = 32, kPerThread = 4;
constexpr int kAcross = kColumns / kPerThread, kRowsAtOnce = kThreads / kAcross;

struct Args {
    const Bf16 *q, *k, *v;
    const float* slopes;
    float* state;
    Bf16* o;
    int64_t stride;
    int heads, value_dim;
};

// ROWS: of a thread.
template <int ROWS>
__global__ void __launch_bounds__(kThreads) attention_kernel(const __grid_constant__ Args args) {
    constexpr int kKey = ROWS * kRowsAtOnce;
    __shared__ float q[kKey], k[kKey];
    __shared__ float4 v[kAcross];
    __shared__ float partial[kWarps][kColumns];
    const int t = threadIdx.x, lane = t % 32, across = t % kAcross, first_row = t / kAcross;
    const int head = blockIdx.y, first_column = blockIdx.x * kColumns;
    const int64_t sequence = blockIdx.z;
    float* state = args.state + (sequence * args.heads + head) * kKey * args.value_dim + first_column +
                   across * kPerThread;
    const auto row_of = [&](int i) {
        return reinterpret_cast<float4*>(state + int64_t{first_row + i * kRowsAtOnce} * args.value_dim);
    };

    // The state was last written a whole step ago.
    float4 rows[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; ++i) rows[i] = __ldcs(row_of(i));
    const float decay = expf(-args.slopes[head]);
    let_next_kernel_start();
    wait_for_previous_kernels();

    const int64_t of_sequence = sequence * args.stride, key = of_sequence + head * kKey;
    const Silu silu;
    static_assert(2 * kKey <= kThreads);
    if (t < kKey) {
        q[t] = silu.value(to_acc(args.q[key + t]));
        if (t < kColumns)
            reinterpret_cast<float*>(v)[t] =
                to_acc(args.v[of_sequence + head * args.value_dim + first_column + t]);
    } else if (t < 2 * kKey) {
        k[t - kKey] = silu.value(to_acc(args.k[key + t - kKey]));
    }
    __syncthreads();

    const float4 value = v[across];
    float sum[kPerThread] = {};
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
        const float key_of_row = k[first_row + i * kRowsAtOnce], query = q[first_row + i * kRowsAtOnce];
        rows[i] = {decay * rows[i].x + key_of_row * value.x, decay * rows[i].y + key_of_row * value.y,
                   decay * rows[i].z + key_of_row * value.z, decay * rows[i].w + key_of_row * value.w};
        sum[0] += query * rows[i].x;
        sum[1] += query * rows[i].y;
        sum[2] += query * rows[i].z;
        sum[3] += query * rows[i].w;
        __stcs(row_of(i), rows[i]);
    }
    // Over the rows: first the four row groups of a warp, then the warps.
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) {
        sum[j] += __shfl_xor_sync(~0u, sum[j], kAcross);
        sum[j] += __shfl_xor_sync(~0u, sum[j], 2 * kAcross);
        if (lane < kAcross) partial[t / 32][lane * kPerThread + j] = sum[j];
    }
    __syncthreads();
    if (t >= kColumns) return;
    float whole = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) whole += partial[w][t];
    args.o[(sequence * args.heads + head) * args.value_dim + first_column + t] = from_acc<Bf16>(whole);
}

}  // namespace

bool bf16_decode_attention_fits(const DecodeAttention& args) {
    return args.dtype == DType::bf16 && args.qk_activation == Activation::silu &&
           args.v_activation == Activation::none && !args.theta && args.key_dim % kRowsAtOnce == 0 &&
           args.key_dim >= 64 && args.key_dim <= 128 && args.value_dim % kColumns == 0 &&
           reinterpret_cast<uintptr_t>(args.state) % sizeof(float4) == 0;
}

void bf16_decode_attention(const Stream& stream, const DecodeAttention& args) {
    if (args.batch == 0) return;
    const Args attention{static_cast<const Bf16*>(args.q),
                         static_cast<const Bf16*>(args.k),
                         static_cast<const Bf16*>(args.v),
                         args.slopes,
                         static_cast<float*>(args.state),
                         static_cast<Bf16*>(args.o),
                         args.stride,
                         static_cast<int>(args.heads),
                         static_cast<int>(args.value_dim)};
    const dim3 grid(static_cast<unsigned>(args.value_dim / kColumns), static_cast<unsigned>(args.heads),
                    static_cast<unsigned>(args.batch));
    launch_dependent(
        use(stream),
        {.grid = grid, .threads = kThreads, .shared = 0, .early = is_hopper(stream.device.index)},
        args.key_dim == 64   ? attention_kernel<2>
        : args.key_dim == 96 ? attention_kernel<3>
                             : attention_kernel<4>,
        attention);
}

}  // namespace levin::kernels::cuda
