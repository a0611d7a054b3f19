// Decoding on a GPU: every step is bound by the bytes of weights and states, so each kernel starts to read
// them before the kernel in front of it has ended (programmatic dependent launch on Hopper), and norms,
// gates, sums and the gated product happen inside the products (bf16_decode_linear.cu,
// sm90_bf16_decode_product.cu).
#include <cooperative_groups.h>

#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/bf16_decode_attention.h"
#include "kernels/cuda/bf16_decode_linear.h"
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/rotation.cuh"
#include "kernels/cuda/row.cuh"
#include "kernels/cuda/sm90_bf16_decode_product.h"
#include "kernels/decode.h"
#include "kernels/decode_steps.h"

namespace levin::kernels::cuda {

namespace {

// --- attention: a block owns 32 columns of one head's state; 8 threads cover them, 32 rows at a time.

constexpr int kAttentionThreads = 256, kColumns = 32, kPerThread = 4, kMaxKeyWidth = 256;
constexpr int kRowsAtOnce = kAttentionThreads / (kColumns / kPerThread);

struct AttentionArgs {
    const void *q, *k, *v, *theta;
    const float* slopes;
    const int64_t* position;
    void *state, *o;
    int64_t stride;
    int heads, key_dim, value_dim, key_width;
    Activation qk_activation, v_activation;
    bool vector;  // rows of the state may be read in vectors
};

// values[0 .. width) = activation(x), with the maximum of the head for Activation::exp. All threads call it.
template <class T>
__device__ inline void activated(const T* x, int width, Activation activation, acc_t<T>* values) {
    using A = acc_t<T>;
    const int i = threadIdx.x;
    const A value = i < width ? to_acc(x[i]) : A(-INFINITY);
    const A shift = activation == Activation::exp ? block_max(value) : A(0);
    if (i < width) values[i] = activate(activation, value, shift);
}

// ROWS of a thread: enough for the width of the keys, and no more, as they are what limits how many bytes are
// on their way.
template <class T, int ROWS>
__global__ void __launch_bounds__(kAttentionThreads)
    attention_kernel(const __grid_constant__ AttentionArgs args) {
    using A = acc_t<T>;
    __shared__ A q[kMaxKeyWidth], k[kMaxKeyWidth], v[kMaxKeyWidth];
    __shared__ A partial[kAttentionThreads / 32][kColumns];
    const int head = blockIdx.y;
    const int64_t sequence = blockIdx.z;
    const int column = blockIdx.x * kColumns + threadIdx.x % (kColumns / kPerThread) * kPerThread;
    const int first_row = threadIdx.x / (kColumns / kPerThread);
    A* state = static_cast<A*>(args.state) +
               (sequence * args.heads + head) * args.key_width * int64_t{args.value_dim};

    // The state was last written a whole step ago.
    Pack<A, kPerThread> rows[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
        const int row = first_row + i * kRowsAtOnce;
        if (row >= args.key_width) continue;
        const A* from = state + int64_t{row} * args.value_dim + column;
        if (args.vector && column < args.value_dim) {
            rows[i] = load<kPerThread>(from);
        } else {
#pragma unroll
            for (int j = 0; j < kPerThread; ++j) rows[i][j] = column + j < args.value_dim ? from[j] : A(0);
        }
    }
    let_next_kernel_start();
    wait_for_previous_kernels();

    const T* base_q = static_cast<const T*>(args.q) + sequence * args.stride + head * args.key_dim;
    const T* base_k = static_cast<const T*>(args.k) + sequence * args.stride + head * args.key_dim;
    const T* base_v = static_cast<const T*>(args.v) + sequence * args.stride + head * args.value_dim;
    activated(base_q, args.key_dim, args.qk_activation, q);
    activated(base_k, args.key_dim, args.qk_activation, k);
    activated(base_v, args.value_dim, args.v_activation, v);
    __syncthreads();
    if (args.theta) {
        const int i = threadIdx.x;
        if (i < args.key_dim) {
            A sine, cosine;
            sine_cosine(static_cast<double>(static_cast<const A*>(args.theta)[head * args.key_dim + i]),
                        *args.position, &sine, &cosine);
            q[args.key_dim + i] = q[i] * sine;
            k[args.key_dim + i] = k[i] * sine;
            q[i] *= cosine;
            k[i] *= cosine;
        }
        __syncthreads();
    }

    const A decay = exp(-static_cast<A>(args.slopes[head]));
    Pack<A, kPerThread> sum{};
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
        const int row = first_row + i * kRowsAtOnce;
        if (row >= args.key_width || column >= args.value_dim) continue;
        A* to = state + int64_t{row} * args.value_dim + column;
#pragma unroll
        for (int j = 0; j < kPerThread; ++j) {
            const A value = column + j < args.value_dim ? v[column + j] : A(0);
            rows[i][j] = decay * rows[i][j] + k[row] * value;
            sum[j] += q[row] * rows[i][j];
        }
        if (args.vector) {
            store<kPerThread>(to, rows[i]);
        } else {
            for (int j = 0; j < kPerThread; ++j)
                if (column + j < args.value_dim) to[j] = rows[i][j];
        }
    }
    // Over the rows: first the four row groups of a warp, then the warps.
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) {
        sum[j] += __shfl_xor_sync(~0u, sum[j], 8);
        sum[j] += __shfl_xor_sync(~0u, sum[j], 16);
        if (threadIdx.x % 32 < kColumns / kPerThread)
            partial[threadIdx.x / 32][threadIdx.x % 32 * kPerThread + j] = sum[j];
    }
    __syncthreads();
    const int mine = blockIdx.x * kColumns + threadIdx.x;
    if (threadIdx.x >= kColumns || mine >= args.value_dim) return;
    A whole = 0;
#pragma unroll
    for (int w = 0; w < kAttentionThreads / 32; ++w) whole += partial[w][threadIdx.x];
    static_cast<T*>(args.o)[(sequence * args.heads + head) * args.value_dim + mine] = from_acc<T>(whole);
}

// --- the next token

// Blocks share a sequence's logits: on Hopper they are a cluster.
constexpr int kAdvanceThreads = 512, kAdvanceBlocks = 8;

struct AdvanceArgs {
    int64_t vocab;
    const void* logits;
    int32_t* ids;
    int64_t* position;
    int blocks;
};

template <class A>
struct Best {
    A value = -INFINITY;
    int place = 0;
    // Of equal ones the first.
    __device__ void meet(const Best& other) {
        if (other.value > value || (other.value == value && other.place < place)) *this = other;
    }
    __device__ void meet_warp() {
#pragma unroll
        for (int offset = 16; offset > 0; offset /= 2)
            meet({__shfl_xor_sync(~0u, value, offset), __shfl_xor_sync(~0u, place, offset)});
    }
};

// N logits at once.
template <class T, int N>
__global__ void __launch_bounds__(kAdvanceThreads) advance_kernel(const __grid_constant__ AdvanceArgs args) {
    using A = acc_t<T>;
    constexpr int kAdvanceWarps = kAdvanceThreads / 32;
    // Plain numbers: shared memory takes no constructor.
    __shared__ A values[kAdvanceWarps];
    __shared__ int places[kAdvanceWarps];
    const int part = static_cast<int>(blockIdx.x) % args.blocks, warp = threadIdx.x / 32,
              lane = threadIdx.x % 32;
    const int64_t sequence = blockIdx.x / args.blocks;
#if __CUDA_ARCH__ >= 900
    __shared__ A block_values[kAdvanceBlocks];
    __shared__ int block_places[kAdvanceBlocks];
    const auto cluster = cooperative_groups::this_cluster();
    cluster.barrier_arrive();  // a block may be told something once it runs
#endif
    wait_for_previous_kernels();
    const T* row = static_cast<const T*>(args.logits) + sequence * args.vocab;
    Best<A> best;
#pragma unroll 4
    for (int64_t i = (int64_t{part} * kAdvanceThreads + threadIdx.x) * N; i < args.vocab;
         i += int64_t{args.blocks} * kAdvanceThreads * N) {
        const auto some = load<N>(row + i);
#pragma unroll
        for (int j = 0; j < N; ++j)
            if (some[j] > best.value) best = {some[j], static_cast<int>(i) + j};
    }
    best.meet_warp();
    if (lane == 0) values[warp] = best.value, places[warp] = best.place;
    __syncthreads();
    if (warp == 0) {
        best = lane < kAdvanceWarps ? Best<A>{values[lane], places[lane]} : Best<A>{};
        best.meet_warp();
    }
#if __CUDA_ARCH__ >= 900
    cluster.barrier_wait();
    if (threadIdx.x == 0) {
        *cluster.map_shared_rank(&block_values[part], 0) = best.value;
        *cluster.map_shared_rank(&block_places[part], 0) = best.place;
    }
    cluster.sync();
    if (part == 0 && threadIdx.x == 0)
        for (int i = 0; i < args.blocks; ++i) best.meet({block_values[i], block_places[i]});
#endif
    if (part != 0 || threadIdx.x != 0) return;
    args.ids[sequence] = best.place;
    if (sequence == 0) ++*args.position;
}

}  // namespace

void decode_linear(const Stream& stream, const DecodeLinear& args) {
    struct Run {
        const Stream& stream;
        void embedding(const EmbeddingForward& embedding) const {
            cuda::embedding_forward(stream, embedding);
        }
        void norm(const SrmsNormForward& norm) const {
            if (!norm.branch && norm.h)
                cuda::copy(stream, Copy{norm.rows, norm.width, norm.dtype, norm.x, norm.width, norm.dtype,
                                        norm.h, norm.width});
            cuda::srms_norm_forward(stream, norm);
        }
        void gated_norm(const GatedSrmsNormForward& norm) const {
            cuda::gated_srms_norm_forward(stream, norm);
        }
        void gemm(const Gemm& product) const { cuda::gemm(stream, product); }
        void glu(const GluForward& product) const { cuda::glu_forward(stream, product); }
    };
    if (bf16_decode_linear_fits(stream, args)) return bf16_decode_linear(stream, args);
    if (sm90_bf16_decode_product_fits(stream, args)) return sm90_bf16_decode_product(stream, args);
    if (args.ids && args.h) return cuda::decode_linear(stream, embedded(args, args.h, Run{stream}));
    decode_linear_in_steps(args, Run{stream});
}

void decode_attention(const Stream& stream, const DecodeAttention& args) {
    if (bf16_decode_attention_fits(args)) return bf16_decode_attention(stream, args);
    const int64_t key_width = args.theta ? 2 * args.key_dim : args.key_dim;
    if (key_width < 1 || key_width > kMaxKeyWidth)
        fail_arguments("decode_attention", "key width must be 1..256", key_width);
    if (args.value_dim < 1 || args.value_dim > kMaxKeyWidth)
        fail_arguments("decode_attention", "value_dim must be 1..256", args.value_dim);
    if (args.batch == 0) return;
    const AttentionArgs attention{
        args.q,
        args.k,
        args.v,
        args.theta,
        args.slopes,
        args.position,
        args.state,
        args.o,
        args.stride,
        static_cast<int>(args.heads),
        static_cast<int>(args.key_dim),
        static_cast<int>(args.value_dim),
        static_cast<int>(key_width),
        args.qk_activation,
        args.v_activation,
        args.value_dim % kPerThread == 0 && reinterpret_cast<uintptr_t>(args.state) % 16 == 0};
    const dim3 grid(static_cast<unsigned>(ceil_div(args.value_dim, kColumns)),
                    static_cast<unsigned>(args.heads), static_cast<unsigned>(args.batch));
    by_type(args.dtype, "decode_attention", [&](auto tag) {
        using T = typename decltype(tag)::type;
        constexpr int kMostRows = kMaxKeyWidth / kRowsAtOnce;
        launch_dependent(use(stream),
                         {.grid = grid,
                          .threads = kAttentionThreads,
                          .shared = 0,
                          .early = is_hopper(stream.device.index)},
                         key_width <= kMaxKeyWidth / 2 ? attention_kernel<T, kMostRows / 2>
                                                       : attention_kernel<T, kMostRows>,
                         attention);
    });
}

void decode_advance(const Stream& stream, const DecodeAdvance& args) {
    const bool hopper = is_hopper(stream.device.index);
    const int blocks = hopper ? kAdvanceBlocks : 1;
    const AdvanceArgs advance{args.vocab, args.logits, args.ids, args.position, blocks};
    by_type(args.dtype, "decode_advance", [&](auto tag) {
        using T = typename decltype(tag)::type;
        const bool vector = vectorizable<T>({{args.logits, args.vocab}});
        launch_dependent(use(stream),
                         {.grid = dim3(static_cast<unsigned>(args.batch * blocks)),
                          .threads = kAdvanceThreads,
                          .shared = 0,
                          .cluster = static_cast<unsigned>(blocks),
                          .early = hopper},
                         vector ? advance_kernel<T, kVector<T>> : advance_kernel<T, 1>, advance);
    });
}

}  // namespace levin::kernels::cuda
