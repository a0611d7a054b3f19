// Products of one or two rows: a warp owns whole outputs and walks along their weights. Norms, gates, sums,
// the embedding and the gated product happen inside.
#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/bf16_decode_linear.h"
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/row.cuh"

namespace levin::kernels::cuda {

namespace {

constexpr int kLinearThreads = 256, kWarps = kLinearThreads / 32;
constexpr int kGroup = 8;          // 16-byte loads in flight per lane, twice (this group and the next)
constexpr int kLane = 8;           // bf16 elements a lane reads at once
constexpr int kStep = 32 * kLane;  // elements a warp reads at once

struct LinearArgs {
    const Bf16 *x, *branch, *u, *weight;
    const int32_t* ids;
    Bf16 *h, *y;
    int64_t u_stride;
    int width, outputs;
    DecodeLinear::Input input;
    bool glu, gate_is_sigmoid;
    float eps, scale;
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
        const auto start = [&](unsigned block) {
            return static_cast<int>(static_cast<unsigned>(args.outputs) * block / gridDim.x);
        };
        first = start(blockIdx.x);
        count = (start(blockIdx.x + 1) - first) * (args.glu ? 2 : 1);
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
        const Bf16* x = args.x + (args.ids ? args.ids[b] : b) * int64_t{width};
        Bf16* to = input + b * width;
        float squares = 0;
        for (int c = threadIdx.x * kLane; c < width; c += kLinearThreads * kLane) {
            auto value = load<kLane>(x + c);
            if (args.ids)
#pragma unroll
                for (int i = 0; i < kLane; ++i) value[i] = to_acc(from_acc<Bf16>(value[i] * args.scale));
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
                for (int i = 0; i < kLane; ++i)
                    value[i] *= args.gate_is_sigmoid ? sigmoid_of(open[i]) : open[i];
            }
            store<kLane>(to + c, value);
        }
    }
    __syncthreads();
}

// GLU's activation of most models.
struct Silu {
    template <class A>
    __device__ A value(A x) const {
        return x * sigmoid_of(x);
    }
};

// Shared memory: the input [B][width], then the sums [B][rows]. `gate`: GLU's activation as a type, as the
// code of all of them has a stack and tables, which cost 0.2 us a launch (1B, batch 1: 0.919 to 0.906 ms a
// step).
template <int B, class Gate>
__global__ void __launch_bounds__(kLinearThreads, 2)
    linear_kernel(const __grid_constant__ LinearArgs args, const Gate gate) {
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
        const float value =
            args.glu ? gate.value(rounded(2 * output)) * rounded(2 * output + 1) : sum_of[output];
        args.y[int64_t{b} * args.outputs + rows.first + output] = from_acc<Bf16>(value);
    }
}

constexpr size_t kSharedForInput = 48 << 10;

template <int B>
void launch(const Stream& stream, const DecodeLinear& args) {
    using Input = DecodeLinear::Input;
    const LinearArgs linear{
        .x = static_cast<const Bf16*>(args.x),
        .branch = args.input == Input::norm ? static_cast<const Bf16*>(args.branch) : nullptr,
        .u = static_cast<const Bf16*>(args.u),
        .weight = static_cast<const Bf16*>(args.weight),
        .ids = args.ids,
        .h = args.input == Input::norm ? static_cast<Bf16*>(args.h) : nullptr,
        .y = static_cast<Bf16*>(args.y),
        .u_stride = args.u_stride,
        .width = static_cast<int>(args.width),
        .outputs = static_cast<int>(args.outputs),
        .input = args.input,
        .glu = args.glu,
        .gate_is_sigmoid = args.gate == Activation::sigmoid,
        .eps = static_cast<float>(args.eps),
        .scale = static_cast<float>(args.scale)};
    const int device = stream.device.index;
    const int64_t blocks = multiprocessors(device),
                  rows = ceil_div(args.outputs, blocks) * (args.glu ? 2 : 1);
    const auto run = [&](auto gate) {
        launch_dependent(use(stream),
                         {.grid = dim3(static_cast<unsigned>(blocks)),
                          .threads = kLinearThreads,
                          .shared = static_cast<size_t>(B) * (static_cast<size_t>(args.width) * sizeof(Bf16) +
                                                              static_cast<size_t>(rows) * sizeof(float)),
                          // The first of a step waits for what came before it: weights may have changed.
                          .early = is_hopper(device) && !args.ids},
                         linear_kernel<B, decltype(gate)>, linear, gate);
    };
    if (!args.glu || args.activation == Activation::none)
        run(NoActivation{});
    else if (args.activation == Activation::silu)
        run(Silu{});
    else
        run(AnyActivation{args.activation});
}

}  // namespace

bool bf16_decode_linear_fits(const DecodeLinear& args) {
    const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
    // At 4 rows the multiply-adds of this kernel already take longer than its bytes: tensor cores are faster.
    return args.dtype == DType::bf16 && (args.batch == 1 || args.batch == 2) && args.width % kLane == 0 &&
           args.outputs < (1 << 20) && !args.add && args.u_stride % kLane == 0 &&
           static_cast<size_t>(args.batch * args.width) * sizeof(Bf16) <= kSharedForInput &&
           aligned(args.x) && aligned(args.branch) && aligned(args.h) && aligned(args.u) &&
           aligned(args.weight);
}

void bf16_decode_linear(const Stream& stream, const DecodeLinear& args) {
    return args.batch == 1 ? launch<1>(stream, args) : launch<2>(stream, args);
}

}  // namespace levin::kernels::cuda
