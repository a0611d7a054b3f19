// Two-level scan: from what each segment of a chain adds to the state to the state at each segment's start.
#pragma once

#include "kernels/cuda/check.h"

namespace levin::kernels::cuda {

// The Hopper kernels hand each other states [128, 128], columns and rows beyond the heads' widths zero, in
// the order of the values in their 256 consumer threads (State in sm90_lightning_tile.cuh): four i of thread
// t is four 256 i + t, so that a warp reads and writes one piece. Two pairs of neighbours in a row, eight
// rows apart.
constexpr int64_t kHeldState = 128 * 128;

struct Place2 {
    int64_t row, column;
};
// Where the pair from the even `element` on lies in [rows, columns].
__device__ inline Place2 pair_at(bool held, int64_t columns, int64_t element) {
    if (!held) return {element / columns, element % columns};
    const int64_t thread = element / 4 % 256;
    return {thread / 32 * 16 + thread % 32 / 4 + element / 2 % 2 * 8, element / 1024 * 8 + thread % 4 * 2};
}

struct StatesBetween {
    const float* initial;  // element (a, b) of a chain's state at a * initial_row + b * initial_column;
                           // nullptr: zero
    float* between;        // [chain, segment, rows, columns]: what the segment adds in, its start state out
    bool held = false;     // .. each in the order above
    const float* slopes;   // one for `parts` heads that follow each other
    int64_t heads, parts, segments, segment_length, rows, columns, initial_row, initial_column;
};

// blockIdx.y: the chain. One thread walks the segments of four neighbouring elements of a row.
static __global__ void states_between_kernel(const __grid_constant__ StatesBetween args) {
    const int64_t chain = blockIdx.y, element = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * 4;
    const int64_t size = args.held ? kHeldState : args.rows * args.columns;
    if (element >= size) return;
    const double slope = args.slopes[chain % args.heads / args.parts];
    const auto decay = static_cast<float>(exp(-slope * static_cast<double>(args.segment_length)));
    float state[4] = {};
    if (args.initial)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const auto [row, column] = pair_at(args.held, args.columns, element + i / 2 * 2);
            if (row < args.rows && column < args.columns)
                state[i] = args.initial[chain * args.rows * args.columns + row * args.initial_row +
                                        (column + i % 2) * args.initial_column];
        }
    float* place = args.between + chain * args.segments * size + element;
    constexpr int kAhead = 4;  // loads in flight: the chain of sums is short, the reads are far
    for (int64_t segment = 0; segment < args.segments; segment += kAhead) {
        float4 added[kAhead];
#pragma unroll
        for (int i = 0; i < kAhead; ++i)
            if (segment + i + 1 < args.segments)
                added[i] = *reinterpret_cast<const float4*>(place + (segment + i) * size);
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
            if (segment + i >= args.segments) break;
            *reinterpret_cast<float4*>(place + (segment + i) * size) =
                make_float4(state[0], state[1], state[2], state[3]);
            if (segment + i + 1 == args.segments) break;
            const float4& x = added[i];
            state[0] = decay * state[0] + x.x, state[1] = decay * state[1] + x.y;
            state[2] = decay * state[2] + x.z, state[3] = decay * state[3] + x.w;
        }
    }
}

// What the segments of a chain add to the state in all.
struct StatesTotal {
    const float* between;  // as above, held, before the scan
    float* total;          // [chain, rows, columns]
    const float* slopes;
    int64_t heads, parts, segments, segment_length, length, rows, columns;
};

static __global__ void states_total_kernel(const __grid_constant__ StatesTotal args) {
    const int64_t chain = blockIdx.y, element = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * 4;
    const double slope = args.slopes[chain % args.heads / args.parts];
    const float* place = args.between + chain * args.segments * kHeldState + element;
    float4 total = {};
#pragma unroll 4
    for (int64_t segment = 0; segment < args.segments; ++segment) {
        const int64_t end = min((segment + 1) * args.segment_length, args.length);
        const float decay = static_cast<float>(exp(-slope * static_cast<double>(args.length - end)));
        const float4 x = *reinterpret_cast<const float4*>(place + segment * kHeldState);
        total.x += decay * x.x, total.y += decay * x.y, total.z += decay * x.z, total.w += decay * x.w;
    }
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const auto [row, column] = pair_at(true, args.columns, element + i);
        if (row < args.rows && column < args.columns)
            *reinterpret_cast<float2*>(args.total + (chain * args.rows + row) * args.columns + column) =
                i == 0 ? make_float2(total.x, total.y) : make_float2(total.z, total.w);
    }
}

inline void launch_states_total(cudaStream_t stream, int64_t chains, const StatesTotal& args) {
    const dim3 grid(kHeldState / (4 * 128), static_cast<unsigned>(chains));
    states_total_kernel<<<grid, 128, 0, stream>>>(args);
    LEVIN_CUDA_LAUNCHED();
}

inline void launch_states_between(cudaStream_t stream, int64_t chains, const StatesBetween& args) {
    if (args.columns % 4 != 0)
        fail_arguments("lightning attention", "columns of a state must be a multiple of 4", args.columns);
    const int64_t size = args.held ? kHeldState : args.rows * args.columns;
    const dim3 grid(static_cast<unsigned>(ceil_div(size, 4 * 128)), static_cast<unsigned>(chains));
    states_between_kernel<<<grid, 128, 0, stream>>>(args);
    LEVIN_CUDA_LAUNCHED();
}

}  // namespace levin::kernels::cuda
