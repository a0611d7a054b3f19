// Decoding on a GPU: every step is bound by the bytes of weights and states, so each kernel starts to read
// them before the kernel in front of it has ended (programmatic dependent launch on Hopper), and norms,
// gates, sums and the gated product happen inside the products.
#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/rotation.cuh"
#include "kernels/cuda/row.cuh"
#include "kernels/decode.h"
#include "kernels/decode_steps.h"

namespace levin::kernels::cuda {

namespace {

// From here on the next kernel of the stream may start; it waits itself before it touches anything.
__device__ inline void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}
// Until here only memory that no kernel of this step writes may be read.
__device__ inline void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

bool is_hopper(int device) {
    int major = 0;
    LEVIN_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    return major >= 9;
}

template <class... Parameters, class... Arguments>
void launch(const Stream& stream, void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared,
            Arguments... arguments) {
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = shared;
    config.stream = use(stream);
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    config.attrs = &attribute;
    config.numAttrs = is_hopper(stream.device.index) ? 1 : 0;
    LEVIN_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}

// --- products with few rows: a warp owns whole outputs and walks along their weights.

constexpr int kLinearThreads = 256, kWarps = kLinearThreads / 32;
constexpr int kGroup = 8;  // 16-byte loads in flight per lane, twice (this group and the next)
constexpr int kLane = 8;   // bf16 elements a lane reads at once
constexpr int kAhead = 3;  // further groups asked of the L2 cache before the kernel in front has ended
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

// The row of weights that a warp reads now, and how far it is.
struct Cursor {
    int output, last, half, step;  // half 1: the second weight of a gated output
    __device__ bool valid() const { return output < last; }
    __device__ void advance(int steps, bool glu) {
        step += kGroup;
        if (step < steps) return;
        step = 0;
        if (glu && half == 0) {
            half = 1;
        } else {
            half = 0;
            output += kWarps;
        }
    }
};

__device__ inline void read_weights(const LinearArgs& args, const Cursor& at, int lane,
                                    uint4 (&group)[kGroup]) {
    if (!at.valid()) return;
    const Bf16* row = args.weight + (int64_t{at.half} * args.outputs + at.output) * args.width;
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
        const int column = (at.step + i) * kStep + lane * kLane;
        group[i] = column < args.width ? __ldcs(reinterpret_cast<const uint4*>(row + column)) : uint4{};
    }
}

// Has the L2 cache fetch the `groups` groups of weights behind a cursor, while nothing else keeps the memory
// busy.
__device__ inline void prefetch_weights(const LinearArgs& args, Cursor at, int steps, int lane, int groups) {
#if __CUDA_ARCH__ >= 900
    if (lane != 0) return;
    for (int i = 0; i < groups; ++i) {
        at.advance(steps, args.glu);
        if (!at.valid()) return;
        const Bf16* from =
            args.weight + (int64_t{at.half} * args.outputs + at.output) * args.width + at.step * kStep;
        const int elements = min(kGroup * kStep, args.width - at.step * kStep);
        asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from),
                     "r"(elements * static_cast<int>(sizeof(Bf16)))
                     : "memory");
    }
#endif
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

template <int B>
__global__ void __launch_bounds__(kLinearThreads, 2) linear_kernel(const __grid_constant__ LinearArgs args) {
    extern __shared__ uint4 shared[];
    Bf16* input = reinterpret_cast<Bf16*>(shared);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int steps = (args.width + kStep - 1) / kStep;
    // Outputs are dealt so that every block reads the same number of bytes, give or take one output.
    const int first = static_cast<int>(int64_t{args.outputs} * blockIdx.x / gridDim.x);
    Cursor at{first + warp, static_cast<int>(int64_t{args.outputs} * (blockIdx.x + 1) / gridDim.x), 0, 0};
    uint4 now[kGroup], next[kGroup];
    read_weights(args, at, lane, now);
    prefetch_weights(args, at, steps, lane, kAhead);
    let_next_start();
    wait_for_previous();
    prepare_input<B>(args, input);

    float sum[B] = {}, gate[B] = {};
    while (at.valid()) {
        Cursor ahead = at;
        ahead.advance(steps, args.glu);
        read_weights(args, ahead, lane, next);
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
                if (args.glu && at.half == 0) {
                    // As in the separate kernels, the factors are rounded before they meet.
                    gate[b] = to_acc(from_acc<Bf16>(whole));
                } else if (lane == 0) {
                    const float value =
                        args.glu ? activate(args.activation, gate[b]) * to_acc(from_acc<Bf16>(whole)) : whole;
                    args.y[int64_t{b} * args.outputs + at.output] = from_acc<Bf16>(value);
                }
            }
        }
        at = ahead;
#pragma unroll
        for (int i = 0; i < kGroup; ++i) now[i] = next[i];
    }
}

constexpr size_t kSharedForInput = 48 << 10;

bool fused_fits(const DecodeLinear& args) {
    const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
    return args.dtype == DType::bf16 && (args.batch == 1 || args.batch == 2) && args.width % kLane == 0 &&
           args.u_stride % kLane == 0 &&
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
    launch(stream, linear_kernel<B>, dim3(static_cast<unsigned>(multiprocessors(stream.device.index))),
           kLinearThreads, static_cast<size_t>(B * args.width) * sizeof(Bf16), linear);
}

// --- attention: a block owns 32 columns of one head's state; 8 threads cover them, 32 rows at a time.

constexpr int kAttentionThreads = 256, kColumns = 32, kPerThread = 4, kMaxKeyWidth = 256;
constexpr int kRowsAtOnce = kAttentionThreads / (kColumns / kPerThread);
constexpr int kRowsPerThread = kMaxKeyWidth / kRowsAtOnce;

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

template <class T>
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
    Pack<A, kPerThread> rows[kRowsPerThread];
#pragma unroll
    for (int i = 0; i < kRowsPerThread; ++i) {
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
    let_next_start();
    wait_for_previous();

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
    for (int i = 0; i < kRowsPerThread; ++i) {
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

template <class T>
__global__ void __launch_bounds__(kAdvanceThreads)
    advance_kernel(int64_t vocab, const T* logits, int32_t* ids, int64_t* position) {
    using A = acc_t<T>;
    __shared__ A values[kAdvanceThreads];
    __shared__ int places[kAdvanceThreads];
    wait_for_previous();
    const T* row = logits + blockIdx.x * vocab;
    A best = -INFINITY;
    int place = 0;
    for (int64_t i = threadIdx.x; i < vocab; i += kAdvanceThreads) {
        const A value = to_acc(row[i]);
        if (value > best) best = value, place = static_cast<int>(i);
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
    if (threadIdx.x == 0) ids[blockIdx.x] = places[0];
    if (threadIdx.x == 0 && blockIdx.x == 0) ++*position;
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
        launch(stream, attention_kernel<T>, grid, kAttentionThreads, 0, attention);
    });
}

void decode_advance(const Stream& stream, const DecodeAdvance& args) {
    const cudaStream_t s = use(stream);
    by_type(args.dtype, "decode_advance", [&](auto tag) {
        using T = typename decltype(tag)::type;
        advance_kernel<T><<<static_cast<unsigned>(args.batch), kAdvanceThreads, 0, s>>>(
            args.vocab, static_cast<const T*>(args.logits), args.ids, args.position);
        LEVIN_CUDA_LAUNCHED();
    });
}

}  // namespace levin::kernels::cuda
