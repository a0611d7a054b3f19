// Decoding on a GPU: every step is bound by the bytes of weights and states, so each kernel starts to read
// them before the kernel in front of it has ended (programmatic dependent launch on Hopper), and norms,
// gates, sums and the gated product happen inside the products.
#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/bf16_decode_attention.h"
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/rotation.cuh"
#include "kernels/cuda/row.cuh"
#include "kernels/decode.h"
#include "kernels/decode_steps.h"

namespace levin::kernels::cuda {

namespace {

bool is_hopper(int device) {
    int major = 0;
    LEVIN_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    return major >= 9;
}

template <class Parameters>
void launch(const Stream& stream, void (*kernel)(Parameters), dim3 grid, int threads, size_t shared,
            const Parameters& parameters) {
    launch_dependent(use(stream), is_hopper(stream.device.index), kernel, grid, threads, shared, parameters);
}

// --- products with few rows: a warp owns whole outputs and walks along their weights.

constexpr int kLinearThreads = 256, kWarps = kLinearThreads / 32;
constexpr int kGroup = 8;          // 16-byte loads in flight per lane, twice (this group and the next)
constexpr int kLane = 8;           // bf16 elements a lane reads at once
constexpr int kStep = 32 * kLane;  // elements a warp reads at once

struct LinearArgs {
    const Bf16 *x, *branch, *u, *weight;
    Bf16 *h, *y;
    int64_t u_stride;
    int width, outputs;
    DecodeLinear::Input input;
    Activation gate, activation;
    bool glu;
    float eps;
};

__device__ inline void unpack(const uint4& raw, float (&values)[kLane]) {
    const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        values[2 * i] = __uint_as_float(words[i] << 16);
        values[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
}

// The rows of weights of a block: its outputs one after the other, of gated outputs both weights. Rows are
// dealt to the warps in turn, each to one warp.
struct BlockRows {
    int first, count;  // output, rows
    __device__ explicit BlockRows(const LinearArgs& args) {
        // Every block reads the same number of bytes, give or take one output.
        first = static_cast<int>(int64_t{args.outputs} * blockIdx.x / gridDim.x);
        const int last = static_cast<int>(int64_t{args.outputs} * (blockIdx.x + 1) / gridDim.x);
        count = (last - first) * (args.glu ? 2 : 1);
    }
    __device__ const Bf16* at(const LinearArgs& args, int row) const {
        const int64_t global = args.glu ? int64_t{row % 2} * args.outputs + first + row / 2 : first + row;
        return args.weight + global * args.width;
    }
};

// The row that a warp reads now, and how far it is.
struct Cursor {
    int row, step;
    __device__ void advance(int steps) {
        step += kGroup;
        if (step < steps) return;
        step = 0;
        row += kWarps;
    }
};

__device__ inline void read_weights(const LinearArgs& args, const BlockRows& rows, const Cursor& at, int lane,
                                    uint4 (&group)[kGroup]) {
    if (at.row >= rows.count) return;
    const Bf16* row = rows.at(args, at.row);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
        const int column = (at.step + i) * kStep + lane * kLane;
        group[i] = column < args.width ? __ldcs(reinterpret_cast<const uint4*>(row + column)) : uint4{};
    }
}

// The input of the product, rounded to bf16, into shared memory [B][width].
template <int B>
__device__ inline void prepare_input(const LinearArgs& args, Bf16* input) {
    const int width = args.width;
    for (int b = 0; b < B; ++b) {
        const Bf16* x = args.x + int64_t{b} * width;
        Bf16* to = input + b * width;
        float squares = 0;
        for (int c = threadIdx.x * kLane; c < width; c += kLinearThreads * kLane) {
            auto value = load<kLane>(x + c);
            if (args.branch) {
                const auto other = load<kLane>(args.branch + int64_t{b} * width + c);
#pragma unroll
                for (int i = 0; i < kLane; ++i) value[i] = to_acc(from_acc<Bf16>(value[i] + other[i]));
            }
            if (args.h && blockIdx.x == 0) store<kLane>(args.h + int64_t{b} * width + c, value);
            store<kLane>(to + c, value);
#pragma unroll
            for (int i = 0; i < kLane; ++i) squares += value[i] * value[i];
        }
        if (args.input == DecodeLinear::Input::plain) continue;
        const float r = 1.0f / sqrtf(block_sum(squares) / static_cast<float>(width) + args.eps);
        for (int c = threadIdx.x * kLane; c < width; c += kLinearThreads * kLane) {
            auto value = load<kLane>(to + c);
#pragma unroll
            for (int i = 0; i < kLane; ++i) value[i] *= r;
            if (args.input == DecodeLinear::Input::gated_norm) {
                const auto open = load<kLane>(args.u + b * args.u_stride + c);
#pragma unroll
                for (int i = 0; i < kLane; ++i) value[i] = activate(args.gate, open[i]) * value[i];
            }
            store<kLane>(to + c, value);
        }
    }
    __syncthreads();
}

// Shared memory: the input [B][width], then the sums [B][rows].
template <int B>
__global__ void __launch_bounds__(kLinearThreads, 2) linear_kernel(const __grid_constant__ LinearArgs args) {
    extern __shared__ uint4 shared[];
    Bf16* input = reinterpret_cast<Bf16*>(shared);
    float* sums = reinterpret_cast<float*>(input + B * args.width);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int steps = (args.width + kStep - 1) / kStep;
    const BlockRows rows(args);
    Cursor at{warp, 0};
    uint4 now[kGroup], next[kGroup];
    read_weights(args, rows, at, lane, now);
    let_next_kernel_start();
    wait_for_previous_kernels();
    prepare_input<B>(args, input);

    float sum[B] = {};
    while (at.row < rows.count) {
        Cursor ahead = at;
        ahead.advance(steps);
        read_weights(args, rows, ahead, lane, next);
#pragma unroll
        for (int i = 0; i < kGroup; ++i) {
            const int column = (at.step + i) * kStep + lane * kLane;
            if (column < args.width) {
                float w[kLane], x[kLane];
                unpack(now[i], w);
#pragma unroll
                for (int b = 0; b < B; ++b) {
                    unpack(*reinterpret_cast<const uint4*>(input + b * args.width + column), x);
#pragma unroll
                    for (int j = 0; j < kLane; ++j) sum[b] += w[j] * x[j];
                }
            }
        }
        if (ahead.step == 0) {  // the row is done
#pragma unroll
            for (int b = 0; b < B; ++b) {
                const float whole = warp_sum(sum[b]);
                sum[b] = 0;
                if (lane == 0) sums[b * rows.count + at.row] = whole;
            }
        }
        at = ahead;
#pragma unroll
        for (int i = 0; i < kGroup; ++i) now[i] = next[i];
    }
    __syncthreads();
    const int outputs = args.glu ? rows.count / 2 : rows.count;
    for (int i = threadIdx.x; i < B * outputs; i += kLinearThreads) {
        const int b = i / outputs, output = i % outputs;
        const float* sum_of = sums + b * rows.count;
        // As in the separate kernels, the factors are rounded before they meet.
        const auto rounded = [&](int row) { return to_acc(from_acc<Bf16>(sum_of[row])); };
        const float value = args.glu
                                ? activate(args.activation, rounded(2 * output)) * rounded(2 * output + 1)
                                : sum_of[output];
        args.y[int64_t{b} * args.outputs + rows.first + output] = from_acc<Bf16>(value);
    }
}

constexpr size_t kSharedForInput = 48 << 10;

bool fused_fits(const DecodeLinear& args) {
    const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
    return args.dtype == DType::bf16 && (args.batch == 1 || args.batch == 2) && args.width % kLane == 0 &&
           !args.add && args.u_stride % kLane == 0 &&
           static_cast<size_t>(args.batch * args.width) * sizeof(Bf16) <= kSharedForInput &&
           aligned(args.x) && aligned(args.branch) && aligned(args.h) && aligned(args.u) &&
           aligned(args.weight);
}

template <int B>
void fused_linear(const Stream& stream, const DecodeLinear& args) {
    const LinearArgs linear{
        static_cast<const Bf16*>(args.x),
        args.input == DecodeLinear::Input::norm ? static_cast<const Bf16*>(args.branch) : nullptr,
        static_cast<const Bf16*>(args.u),
        static_cast<const Bf16*>(args.weight),
        args.input == DecodeLinear::Input::norm ? static_cast<Bf16*>(args.h) : nullptr,
        static_cast<Bf16*>(args.y),
        args.u_stride,
        static_cast<int>(args.width),
        static_cast<int>(args.outputs),
        args.input,
        args.gate,
        args.activation,
        args.glu,
        static_cast<float>(args.eps)};
    const int64_t blocks = multiprocessors(stream.device.index),
                  rows = ceil_div(args.outputs, blocks) * (args.glu ? 2 : 1);
    const auto shared = static_cast<size_t>(B) * (static_cast<size_t>(args.width) * sizeof(Bf16) +
                                                  static_cast<size_t>(rows) * sizeof(float));
    launch(stream, linear_kernel<B>, dim3(static_cast<unsigned>(blocks)), kLinearThreads, shared, linear);
}

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

constexpr int kAdvanceThreads = 1024;

struct AdvanceArgs {
    int64_t vocab;
    const void* logits;
    int32_t* ids;
    int64_t* position;
};

// N logits at once.
template <class T, int N>
__global__ void __launch_bounds__(kAdvanceThreads) advance_kernel(const __grid_constant__ AdvanceArgs args) {
    using A = acc_t<T>;
    __shared__ A values[kAdvanceThreads];
    __shared__ int places[kAdvanceThreads];
    wait_for_previous_kernels();
    const T* row = static_cast<const T*>(args.logits) + blockIdx.x * args.vocab;
    A best = -INFINITY;
    int place = 0;
#pragma unroll 4
    for (int64_t i = int64_t{threadIdx.x} * N; i < args.vocab; i += kAdvanceThreads * N) {
        const auto some = load<N>(row + i);
#pragma unroll
        for (int j = 0; j < N; ++j)
            if (some[j] > best) best = some[j], place = static_cast<int>(i) + j;
    }
    values[threadIdx.x] = best;
    places[threadIdx.x] = place;
    for (int width = kAdvanceThreads / 2; width > 0; width /= 2) {
        __syncthreads();
        if (threadIdx.x < width) {
            const A other = values[threadIdx.x + width];
            const int other_place = places[threadIdx.x + width];
            if (other > values[threadIdx.x] ||
                (other == values[threadIdx.x] && other_place < places[threadIdx.x])) {
                values[threadIdx.x] = other;
                places[threadIdx.x] = other_place;
            }
        }
    }
    if (threadIdx.x == 0) args.ids[blockIdx.x] = places[0];
    if (threadIdx.x == 0 && blockIdx.x == 0) ++*args.position;
}

}  // namespace

void decode_linear(const Stream& stream, const DecodeLinear& args) {
    if (fused_fits(args)) {
        // At 4 rows the multiply-adds of this kernel already take longer than its bytes: tensor cores are
        // faster.
        return args.batch == 1 ? fused_linear<1>(stream, args) : fused_linear<2>(stream, args);
    }
    struct Run {
        const Stream& stream;
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
        launch(stream,
               key_width <= kMaxKeyWidth / 2 ? attention_kernel<T, kMostRows / 2>
                                             : attention_kernel<T, kMostRows>,
               grid, kAttentionThreads, 0, attention);
    });
}

void decode_advance(const Stream& stream, const DecodeAdvance& args) {
    const AdvanceArgs advance{args.vocab, args.logits, args.ids, args.position};
    by_type(args.dtype, "decode_advance", [&](auto tag) {
        using T = typename decltype(tag)::type;
        const bool vector = vectorizable<T>({{args.logits, args.vocab}});
        launch(stream, vector ? advance_kernel<T, kVector<T>> : advance_kernel<T, 1>,
               dim3(static_cast<unsigned>(args.batch)), kAdvanceThreads, 0, advance);
    });
}

}  // namespace levin::kernels::cuda
