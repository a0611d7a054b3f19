// Products of one row: a warp owns whole outputs and walks along their weights. Norms, gates, sums,
// the embedding and the gated product happen inside.
#include <cuda_pipeline_primitives.h>

#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/bf16_decode_linear.h"
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/row.cuh"

namespace levin::kernels::cuda {

namespace {

constexpr int kLinearThreads = 256, kWarps = kLinearThreads / 32;
constexpr int kGroup = 8;  // 16-byte copies in flight per lane, kRing times
constexpr int kRing = 2;   // the group at work and the next; three: 0.863 beside 0.861 ms (1B, batch 1)
constexpr int kLane = 8;   // bf16 elements a lane reads at once
constexpr int kStep = 32 * kLane;  // elements a warp reads at once

struct LinearArgs {
    const Bf16 *x, *other, *weight;  // other: what is added to x, or its gate
    const int32_t* ids;
    Bf16 *h, *y;
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

// Has the input copied to shared memory, and what it meets beside it. Copies are
// waited for in their order, not with the weights behind them (see multiply_rows).
__device__ inline void ask_for_input(const LinearArgs& args, Bf16* input, Bf16* other) {
    const Bf16* x = args.x + (args.ids ? args.ids[0] * int64_t{args.width} : 0);
    for (int c = threadIdx.x * kLane; c < args.width; c += kLinearThreads * kLane) {
        __pipeline_memcpy_async(input + c, x + c, 16);
        if (args.other) __pipeline_memcpy_async(other + c, args.other + c, 16);
    }
    __pipeline_commit();
}

// Makes the input of what a thread has asked for and got. Ends with a barrier.
__device__ inline void prepare_input(const LinearArgs& args, Bf16* input, const Bf16* other) {
    __shared__ float partial[kWarps];
    const bool normed = args.input != DecodeLinear::Input::plain;
    const auto each = [&](auto&& body) {
        for (int c = threadIdx.x * kLane; c < args.width; c += kLinearThreads * kLane)
            body(c, input + c, other + c);
    };
    const auto rounded = [](float a) { return to_acc(from_acc<Bf16>(a)); };
    if (normed) {
        float squares = 0;
        each([&](int c, Bf16* x, const Bf16* y) {
            auto value = load<kLane>(x);
            if (args.ids)
#pragma unroll
                for (int i = 0; i < kLane; ++i) value[i] = rounded(value[i] * args.scale);
            if (args.other && args.input == DecodeLinear::Input::norm) {
                const auto branch = load<kLane>(y);
#pragma unroll
                for (int i = 0; i < kLane; ++i) value[i] = rounded(value[i] + branch[i]);
            }
#pragma unroll
            for (int i = 0; i < kLane; ++i) squares += value[i] * value[i];
            if (args.input == DecodeLinear::Input::norm) store<kLane>(x, value);
            if (args.h && blockIdx.x == 0) store<kLane>(args.h + c, value);
        });
        squares = warp_sum(squares);
        if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = squares;
        __syncthreads();
        squares = 0;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) squares += partial[w];
        const float r = 1.0f / sqrtf(squares / static_cast<float>(args.width) + args.eps);
        each([&](int, Bf16* x, const Bf16* y) {
            auto value = load<kLane>(x);
#pragma unroll
            for (int i = 0; i < kLane; ++i) value[i] *= r;
            if (args.input == DecodeLinear::Input::gated_norm) {
                const auto gate = load<kLane>(y);
                if (args.gate_is_sigmoid)
#pragma unroll
                    for (int i = 0; i < kLane; ++i) value[i] *= sigmoid_of(gate[i]);
                else
#pragma unroll
                    for (int i = 0; i < kLane; ++i) value[i] *= gate[i];
            }
            store<kLane>(x, value);
        });
    }
    __syncthreads();
}

// Of eight elements.
__device__ inline float product(const uint4& weights, const Bf16* input) {
    float w[kLane], x[kLane], sum = 0;
    unpack(weights, w);
    unpack(*reinterpret_cast<const uint4*>(input), x);
#pragma unroll
    for (int j = 0; j < kLane; ++j) sum += w[j] * x[j];
    return sum;
}

// Calls done(row, sum) with the product of the input and a row of the block, in lane 0 of one warp. Waits for
// the kernels in front. input: shared memory for the input and what it meets. ring: for weights on their way,
// of each lane its own part. They come by asynchronous copies: loads to registers share a counter (ptxas
// gives them one), so that who waits for the input would wait for the weights asked for behind it too.
template <class Done>
__device__ inline void multiply_rows(const LinearArgs& args, Bf16* input, uint4* ring, const BlockRows& rows,
                                     const Done& done) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int steps = (args.width + kStep - 1) / kStep;
    Bf16* other = input + args.width;
    ring += warp * kRing * kGroup * 32 + lane;
    Cursor at{warp, 0}, ahead = at;
    int slot = 0, to = 0;
    // Behind the last group it counts as asked for too.
    const auto ask = [&] {
        if (ahead.row < rows.count) {
            const Bf16* row = rows.at(args, ahead.row);
#pragma unroll
            for (int i = 0; i < kGroup; ++i) {
                const int column = (ahead.step + i) * kStep + lane * kLane;
                if (column < args.width)
                    __pipeline_memcpy_async(ring + (to * kGroup + i) * 32, row + column, 16);
            }
        }
        __pipeline_commit();
        ahead.advance(steps);
        to = to + 1 == kRing ? 0 : to + 1;
    };
    ask();
    let_next_kernel_start();
    wait_for_previous_kernels();
    // The memory must not stand still while the input is made: the next weights are asked for right behind
    // it.
    ask_for_input(args, input, other);
#pragma unroll
    for (int i = 1; i < kRing; ++i) ask();
    __pipeline_wait_prior(kRing - 1);
    prepare_input(args, input, other);

    float sum = 0;
    while (at.row < rows.count) {
        __pipeline_wait_prior(kRing - 1);
#pragma unroll
        for (int i = 0; i < kGroup; ++i) {
            const int column = (at.step + i) * kStep + lane * kLane;
            if (column < args.width) sum += product(ring[(slot * kGroup + i) * 32], input + column);
        }
        const int row = at.row;
        at.advance(steps);
        ask();
        if (at.row != row) {
            const float whole = warp_sum(sum);
            sum = 0;
            if (lane == 0) done(row, whole);
        }
        slot = slot + 1 == kRing ? 0 : slot + 1;
    }
    __pipeline_wait_prior(0);
}

// Shared memory: the input and what it meets, the ring, with GLU the sums of the rows. `gate`: GLU's
// activation as a type, as the code of all of them has a stack and tables, which cost 0.2 us a launch.
template <class Gate>
__global__ void __launch_bounds__(kLinearThreads, 2)
    linear_kernel(const __grid_constant__ LinearArgs args, const Gate gate) {
    extern __shared__ uint4 shared[];
    Bf16* input = reinterpret_cast<Bf16*>(shared);
    uint4* ring = shared + (args.other ? 2 : 1) * args.width / kLane;
    float* sums = reinterpret_cast<float*>(ring + kWarps * kRing * kGroup * 32);
    const BlockRows rows(args);
    multiply_rows(args, input, ring, rows, [&](int row, float sum) {
        if (args.glu)
            sums[row] = sum;
        else
            args.y[rows.first + row] = from_acc<Bf16>(sum);
    });
    if (!args.glu) return;
    __syncthreads();
    for (int output = threadIdx.x; output < rows.count / 2; output += kLinearThreads) {
        // As in the separate kernels, the factors are rounded before they meet.
        const auto rounded = [&](int row) { return to_acc(from_acc<Bf16>(sums[row])); };
        args.y[rows.first + output] =
            from_acc<Bf16>(gate.value(rounded(2 * output)) * rounded(2 * output + 1));
    }
}

constexpr size_t kSharedForInput = 48 << 10;  // without what it meets

size_t shared_bytes(int device, const DecodeLinear& args) {
    const bool meets = args.input != DecodeLinear::Input::plain;
    const int64_t rows = args.glu ? 2 * ceil_div(args.outputs, multiprocessors(device)) : 0;
    return static_cast<size_t>(args.width) * sizeof(Bf16) * (meets ? 2 : 1) +
           sizeof(uint4) * kWarps * kRing * kGroup * 32 + static_cast<size_t>(rows) * sizeof(float);
}

}  // namespace

bool bf16_decode_linear_fits(const Stream& stream, const DecodeLinear& args) {
    const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
    return args.dtype == DType::bf16 && args.batch == 1 && args.width % kLane == 0 &&
           args.outputs < (1 << 20) && !args.add &&
           static_cast<size_t>(args.width) * sizeof(Bf16) <= kSharedForInput && aligned(args.x) &&
           aligned(args.branch) && aligned(args.h) && aligned(args.u) && aligned(args.weight) &&
           shared_bytes(stream.device.index, args) + 1024 <= max_shared_memory(stream.device.index);
}

void bf16_decode_linear(const Stream& stream, const DecodeLinear& args) {
    using Input = DecodeLinear::Input;
    const LinearArgs linear{.x = static_cast<const Bf16*>(args.x),
                            .other = static_cast<const Bf16*>(args.input == Input::norm         ? args.branch
                                                              : args.input == Input::gated_norm ? args.u
                                                                                                : nullptr),
                            .weight = static_cast<const Bf16*>(args.weight),
                            .ids = args.ids,
                            .h = args.input == Input::norm ? static_cast<Bf16*>(args.h) : nullptr,
                            .y = static_cast<Bf16*>(args.y),
                            .width = static_cast<int>(args.width),
                            .outputs = static_cast<int>(args.outputs),
                            .input = args.input,
                            .glu = args.glu,
                            .gate_is_sigmoid = args.gate == Activation::sigmoid,
                            .eps = static_cast<float>(args.eps),
                            .scale = static_cast<float>(args.scale)};
    const int device = stream.device.index;
    const auto run = [&](auto gate) {
        launch_dependent(use(stream),
                         {.grid = dim3(static_cast<unsigned>(multiprocessors(device))),
                          .threads = kLinearThreads,
                          .shared = shared_bytes(device, args),
                          // The first of a step waits for what came before it: weights may have changed.
                          .early = is_hopper(device) && !args.ids},
                         linear_kernel<decltype(gate)>, linear, gate);
    };
    if (!args.glu || args.activation == Activation::none)
        run(NoActivation{});
    else if (args.activation == Activation::silu)
        run(Silu{});
    else
        run(AnyActivation{args.activation});
}

}  // namespace levin::kernels::cuda
