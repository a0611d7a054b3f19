// Products of at most 64 rows, bound by the bytes of the weights. A block owns 64 rows of weights, or shares
// them with the other blocks of a cluster, each with a part of the width, whose sums meet in shared memory. A
// block takes half of a multiprocessor's shared memory, so that the next kernel's blocks can ask for their
// first weights while the last of these are multiplied: the memory must not stand still from one kernel to
// the next.
//
// The norm's factor is a number per row and applied to the sums; the gate is applied to the input in
// registers, the left operand of wgmma. What runs once a kernel is kept short: its instructions come from
// the L2 cache, and waiting for them costs more than what they do.
#include <cooperative_groups.h>

#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/sm90_bf16_decode_product.h"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/wgmma.cuh"

namespace levin::kernels::cuda {

namespace {

constexpr int kRows = 64;      // of the input: what wgmma takes
constexpr int kTile = 64;      // rows of weights
constexpr int kConsumers = 4;  // warps
constexpr int kConsumerThreads = 32 * kConsumers;
constexpr int kThreads = kConsumerThreads + 64;  // and one warp each that asks for weights and for input
constexpr int kPanel = 64;                       // columns of a box
constexpr int kMostParts = 4;
// Half of 228 KiB, less what the system takes of each block and 1 KiB of barriers and squares.
constexpr uint32_t kShared = 112 << 10;

struct Args {
    CUtensorMap weight, x, u;
    Bf16* y;
    int batch, pairs, outputs;
    uint32_t input_bytes;  // of a box of x or u
    bool norm, gate_is_sigmoid, add;
    float eps, inverse_width;
};

// What a kernel does beside the product.
enum class Form { plain, gated_input, gated_outputs };

#ifdef LEVIN_SM90A
constexpr uint32_t kInputBox = kRows * kPanel * sizeof(Bf16), kWeightBox = kTile * kPanel * sizeof(Bf16);
constexpr int kInputSlots = 4;
// Floats from one row of sums to the next: 8 beyond a multiple of 32, so that the rows of a fragment meet in
// no bank.
constexpr int kSumStride = kTile + 8;

// Boxes on their way: slots that are filled and emptied in turn.
struct Ring {
    uint32_t full, empty;  // barriers of slot 0
    int slots, slot = 0;
    uint32_t parity = 0;
    __device__ void advance() {
        if (++slot < slots) return;
        slot = 0;
        parity ^= 1;
    }
    __device__ void initialize() const {
        for (int i = 0; i < slots; ++i) {
            initialize_barrier(full + 8 * i, 1);
            initialize_barrier(empty + 8 * i, kConsumers);
        }
    }
    __device__ uint32_t full_slot() const { return full + 8 * slot; }
    __device__ void wait_full() const { wait_barrier(full_slot(), parity); }
    __device__ void wait_empty() const { wait_barrier(empty + 8 * slot, parity ^ 1); }
    __device__ void release() const {
        if (threadIdx.x % 32 == 0) arrive(empty + 8 * slot);
    }
};

// o u, or o sigmoid(u); rounded, as operands are.
__device__ inline uint32_t gated(uint32_t o, uint32_t u, bool sigmoid) {
    const float low = low_half(u), high = high_half(u);
    return pack(low_half(o) * (sigmoid ? fast_sigmoid(low) : low),
                high_half(o) * (sigmoid ? fast_sigmoid(high) : high));
}

// Nobody reads this block's shared memory any longer.
__device__ inline void leave_cluster() {
    asm volatile("barrier.cluster.arrive.relaxed;\nbarrier.cluster.wait;" ::: "memory");
}
// All blocks of the cluster have written what the others read. Shared memory has no copies: what is there for
// the block is there for the cluster. So the fence need not reach further, as that of the barrier itself
// would, which waits for all the loads under way (a step of 64 sequences took 3 to 4 % longer with it).
__device__ inline void meet_cluster() {
    __threadfence_block();
    leave_cluster();
}
// Where another block of the cluster has what this one has at `address`; reads from there.
__device__ inline uint32_t address_in_block(uint32_t address, int rank) {
    uint32_t result;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(result) : "r"(address), "r"(rank));
    return result;
}
__device__ inline float load_in_cluster(uint32_t address) {
    float v;
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(v) : "r"(address) : "memory");
    return v;
}
__device__ inline float4 load_four_in_cluster(uint32_t address) {
    float4 v;
    asm volatile("ld.shared::cluster.v4.f32 {%0,%1,%2,%3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "r"(address)
                 : "memory");
    return v;
}

__device__ inline float4 operator+(float4 a, float4 b) {
    return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
}
__device__ inline float4 operator*(float4 a, float b) { return {a.x * b, a.y * b, a.z * b, a.w * b}; }
__device__ inline uint2 pack_four(float4 a) { return {pack(a.x, a.y), pack(a.z, a.w)}; }
__device__ inline float4 unpack_four(uint2 a) {
    return {low_half(a.x), high_half(a.x), low_half(a.y), high_half(a.y)};
}

template <Form FORM>
struct Layout {
    static constexpr bool kGatedInput = FORM == Form::gated_input,
                          kGatedOutputs = FORM == Form::gated_outputs;
    static constexpr uint32_t kInputSlot = kInputBox * (kGatedInput ? 2 : 1),
                              kInputs = kInputSlot * kInputSlots;
    static constexpr int kWeightSlots = (kShared - kInputs) / kWeightBox;
    static constexpr int kOutputs = kGatedOutputs ? kTile / 2 : kTile;
    static_assert(kRows * kSumStride * sizeof(float) <= kShared);
};

// A block's part of the width, in panels, and its outputs. Panels come in pairs; the last one may lie outside
// and reads as zero.
struct Place {
    int part, parts, first, count, first_output;
    __device__ Place(const Args& args, int outputs) {
        const auto cluster = cooperative_groups::this_cluster();
        part = static_cast<int>(cluster.block_rank()), parts = static_cast<int>(cluster.num_blocks());
        first = 2 * (args.pairs * part / parts);
        count = 2 * (args.pairs * (part + 1) / parts) - first;
        first_output = static_cast<int>(blockIdx.x) / parts * outputs;
    }
};

// One thread.
template <Form FORM>
__device__ inline void ask_for_weights(const Args& args, const Place& place, Ring ring, uint32_t slots) {
#pragma unroll 1
    for (int i = 0; i < place.count; ++i, ring.advance()) {
        ring.wait_empty();
        // Earlier, the next kernel's weights would only take their share of the memory from these.
        if (i == place.count - 2) let_next_kernel_start();
        arrive_and_expect(ring.full_slot(), kWeightBox);
        const uint32_t to = slots + ring.slot * kWeightBox;
        const int column = (place.first + i) * kPanel;
        fetch_box(to, args.weight, column, 0, place.first_output, 0, ring.full_slot());
        if constexpr (FORM == Form::gated_outputs)
            fetch_box(to + kWeightBox / 2, args.weight, column, 0, args.outputs + place.first_output, 0,
                      ring.full_slot());
    }
}

// One thread.
template <Form FORM>
__device__ inline void ask_for_input(const Args& args, const Place& place, Ring ring, uint32_t slots) {
    constexpr bool kGated = FORM == Form::gated_input;
    prefetch_map(args.x);
    if constexpr (kGated) prefetch_map(args.u);
    wait_for_previous_kernels();
#pragma unroll 1
    for (int i = 0; i < place.count; ++i, ring.advance()) {
        ring.wait_empty();
        arrive_and_expect(ring.full_slot(), args.input_bytes * (kGated ? 2 : 1));
        const uint32_t to = slots + ring.slot * Layout<FORM>::kInputSlot;
        const int column = (place.first + i) * kPanel;
        fetch_box(to, args.x, column, 0, 0, 0, ring.full_slot());
        if constexpr (kGated) fetch_box(to + kInputBox, args.u, column, 0, 0, 0, ring.full_slot());
    }
}

// sum: of wgmma, the product of this block's part of the width; squares: of x, this thread's share of the
// rows of `sum`. Rows behind the batch hold what was there.
template <Form FORM>
__device__ inline void multiply_panels(const Args& args, const Place& place, Ring input, uint32_t input_slots,
                                       Ring weights, uint32_t weight_slots, float (&sum)[kTile / 2],
                                       float (&squares)[2]) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll 1
    for (int i = 0; i < place.count; i += 2) {
        uint32_t x[8][4];
#pragma unroll
        for (int k = 0; k < 8; ++k) {
            if (k % 4 == 0) input.wait_full();
            const uint32_t from = panel_address<kRows>(input_slots + input.slot * Layout<FORM>::kInputSlot,
                                                       16 * warp + lane % 16, 2 * (k % 4) + lane / 16);
            load_fragments(x[k], from);
            if (args.norm)
#pragma unroll
                for (int j = 0; j < 4; ++j)
                    squares[j % 2] +=
                        low_half(x[k][j]) * low_half(x[k][j]) + high_half(x[k][j]) * high_half(x[k][j]);
            if constexpr (FORM == Form::gated_input) {
                uint32_t u[4];
                load_fragments(u, from + kInputBox);
#pragma unroll
                for (int j = 0; j < 4; ++j) x[k][j] = gated(x[k][j], u[j], args.gate_is_sigmoid);
            }
            if (k % 4 == 3) input.release(), input.advance();
        }
        Ring both[2] = {weights, weights};
        both[1].advance();
        weights = both[1];
        weights.advance();
        both[0].wait_full();
        both[1].wait_full();
        begin_products();
#pragma unroll
        for (int k = 0; k < 8; ++k)
            multiply<false>(sum, x[k],
                            straight<kTile>(weight_slots + both[k / 4].slot * kWeightBox, 0, k % 4), true);
        commit_products();
        wait_products<0>(sum);
        both[0].release();
        both[1].release();
    }
}

// Each block of a cluster ends some of the rows, each thread some items of four outputs.
template <Form FORM>
struct Item {
    int row, place;  // of the sums
    uint2* y;        // nullptr: outside
    uint2 old;

    static constexpr int kOfRow = Layout<FORM>::kOutputs / 4;
    __device__ Item(const Args& args, const Place& block, int i)
        : row(block.part * (kRows / block.parts) + i / kOfRow), place(0), y(nullptr), old{} {
        const int column = i % kOfRow * 4, output = block.first_output + column;
        if (i < kRows / block.parts * kOfRow && row < args.batch && output < args.outputs) {
            place = row * kSumStride + column;
            y = reinterpret_cast<uint2*>(args.y + int64_t{row} * args.outputs + output);
            if (args.add) old = *y;
        } else {
            row = 0;
        }
    }
};
constexpr int kItems = 2;  // of a thread at once

// Adds the sums of the cluster's blocks, in their order, and writes y.
template <Form FORM, class Gate>
__device__ inline void end_rows(const Args& args, const Gate& gate, const Place& block,
                                Item<FORM> (&items)[kItems], uint32_t sums, uint32_t squares) {
    constexpr bool kGated = FORM == Form::gated_outputs;
    uint32_t sums_in[kMostParts], squares_in[kMostParts];
#pragma unroll
    for (int p = 0; p < kMostParts; ++p) {
        sums_in[p] = address_in_block(sums, min(p, block.parts - 1));
        squares_in[p] = address_in_block(squares, min(p, block.parts - 1));
    }
    const int count = kRows / block.parts * Item<FORM>::kOfRow;
#pragma unroll 1
    for (int i = threadIdx.x; i < count; i += kItems * kConsumerThreads) {
        float4 left[kItems]{}, right[kItems]{};
        float square[kItems]{};
        // All loads are asked for before the first is used, also those that do not count.
#pragma unroll
        for (int p = 0; p < kMostParts; ++p)
#pragma unroll
            for (int j = 0; j < kItems; ++j) {
                const uint32_t from = sums_in[p] + 4 * items[j].place;
                const bool counts = p < block.parts;
                const float4 l = load_four_in_cluster(from);
                left[j] = counts ? left[j] + l : left[j];
                if constexpr (kGated) {
                    const float4 r = load_four_in_cluster(from + 4 * Layout<FORM>::kOutputs);
                    right[j] = counts ? right[j] + r : right[j];
                }
                const float s = load_in_cluster(squares_in[p] + 4 * items[j].row);
                square[j] = counts ? square[j] + s : square[j];
            }
#pragma unroll
        for (int j = 0; j < kItems; ++j) {
            const float factor = args.norm ? rsqrtf(square[j] * args.inverse_width + args.eps) : 1.0f;
            float4 result = left[j] * factor;
            if constexpr (kGated) {
                // As in the separate kernels, the factors are rounded before they meet.
                const float4 l = unpack_four(pack_four(result)),
                             r = unpack_four(pack_four(right[j] * factor));
                result = {gate.value(l.x) * r.x, gate.value(l.y) * r.y, gate.value(l.z) * r.z,
                          gate.value(l.w) * r.w};
            } else if (args.add) {
                result = result + unpack_four(items[j].old);
            }
            if (items[j].y) *items[j].y = pack_four(result);
            items[j] = {args, block, i + (kItems + j) * kConsumerThreads};
        }
    }
}
#endif

// `Gate`: activation of gated outputs. blockIdx.x / blocks of a cluster: which tile of weights.
template <Form FORM, class Gate>
__global__ void __launch_bounds__(kThreads, 2)
    product_kernel(const __grid_constant__ Args args, const Gate gate) {
#ifdef LEVIN_SM90A
    using L = Layout<FORM>;
    extern __shared__ __align__(1024) uint8_t shared[];
    __shared__ __align__(8) uint64_t barriers[2 * (kInputSlots + L::kWeightSlots)];
    __shared__ float squares[kRows];
    static_assert(sizeof barriers + sizeof squares <= 1024);
    const Place place(args, L::kOutputs);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t inputs_at = shared_address(shared), weights_at = inputs_at + L::kInputs;
    const uint32_t of_input = shared_address(barriers), of_weights = of_input + 16 * kInputSlots;
    const Ring input{of_input, of_input + 8 * kInputSlots, kInputSlots};
    const Ring weights{of_weights, of_weights + 8 * L::kWeightSlots, L::kWeightSlots};
    if (threadIdx.x == 0) {
        input.initialize();
        weights.initialize();
        publish_to_products();
    }
    __syncthreads();

    if (warp == kConsumers) {
        if (lane == 0) ask_for_weights<FORM>(args, place, weights, weights_at);
    } else if (warp == kConsumers + 1) {
        if (lane == 0) ask_for_input<FORM>(args, place, input, inputs_at);
    } else {
        wait_for_previous_kernels();
        // What is in y is asked for here: later it would come behind the next kernel's weights.
        Item<FORM> items[kItems] = {{args, place, static_cast<int>(threadIdx.x)},
                                    {args, place, static_cast<int>(threadIdx.x) + kConsumerThreads}};
        float sum[kTile / 2] = {}, of_rows[2] = {};
        multiply_panels<FORM>(args, place, input, inputs_at, weights, weights_at, sum, of_rows);
        // All of this block's boxes have come and, behind this barrier, have been used: sums take their
        // place.
        synchronize(1, kConsumerThreads);
        const int row = 16 * warp + lane / 4;
        float* to = reinterpret_cast<float*>(shared) + row * kSumStride + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < kTile / 2; i += 2)
            *reinterpret_cast<float2*>(to + i % 4 / 2 * 8 * kSumStride + i / 4 * 8) = {sum[i], sum[i + 1]};
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            of_rows[half] += __shfl_xor_sync(~0u, of_rows[half], 1);
            of_rows[half] += __shfl_xor_sync(~0u, of_rows[half], 2);
            if (lane % 4 == 0) squares[row + 8 * half] = of_rows[half];
        }
        meet_cluster();
        end_rows<FORM>(args, gate, place, items, inputs_at, shared_address(squares));
        leave_cluster();
        return;
    }
    __syncwarp();
    meet_cluster();
    leave_cluster();
#endif
}

// Blocks of a cluster: as few as give nearly every multiprocessor a block.
int parts_of(int64_t tiles, int64_t pairs, int processors) {
    int parts = 1;
    while (parts < kMostParts && 2 * parts <= pairs && tiles * parts < processors * 9 / 10) parts *= 2;
    return parts;
}

template <Form FORM, class Gate>
void launch(const Stream& stream, const DecodeLinear& args, const Gate& gate) {
    constexpr bool kGatedOutputs = FORM == Form::gated_outputs;
    const int64_t tiles = ceil_div(args.outputs, int64_t{kGatedOutputs ? kTile / 2 : kTile});
    const int64_t pairs = ceil_div(args.width, int64_t{2 * kPanel});
    const int parts = parts_of(tiles, pairs, multiprocessors(stream.device.index));
    const auto input_map = [&](const void* data, int64_t stride) {
        return panel_map(data, stride, 1, args.batch, 1, args.width, static_cast<int>(args.batch));
    };
    Args product{
        .weight = panel_map(args.weight, args.width, 1, kGatedOutputs ? 2 * args.outputs : args.outputs, 1,
                            args.width, kGatedOutputs ? kTile / 2 : kTile),
        .x = input_map(args.x, args.width),
        .u = {},
        .y = static_cast<Bf16*>(args.y),
        .batch = static_cast<int>(args.batch),
        .pairs = static_cast<int>(pairs),
        .outputs = static_cast<int>(args.outputs),
        .input_bytes = static_cast<uint32_t>(args.batch * kPanel * sizeof(Bf16)),
        .norm = args.input != DecodeLinear::Input::plain,
        .gate_is_sigmoid = args.gate == Activation::sigmoid,
        .add = args.add,
        .eps = static_cast<float>(args.eps),
        .inverse_width = 1.0f / static_cast<float>(args.width)};
    if (FORM == Form::gated_input) product.u = input_map(args.u, args.u_stride);
    launch_dependent(use(stream),
                     {.grid = dim3(static_cast<unsigned>(tiles * parts)),
                      .threads = kThreads,
                      .shared = kShared,
                      .cluster = static_cast<unsigned>(parts),
                      .early = true},
                     product_kernel<FORM, Gate>, product, gate);
}

}  // namespace

bool sm90_bf16_decode_product_fits(const Stream& stream, const DecodeLinear& args) {
    const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
    return is_hopper(stream.device.index) && args.dtype == DType::bf16 && args.batch > 0 &&
           args.batch <= kRows && args.width % 8 == 0 && args.u_stride % 8 == 0 && args.outputs % 4 == 0 &&
           args.outputs < (1 << 24) && !(args.glu && args.input == DecodeLinear::Input::gated_norm) &&
           !args.ids && !args.branch && !args.h && aligned(args.x) && aligned(args.u) &&
           aligned(args.weight) && aligned(args.y);
}

void sm90_bf16_decode_product(const Stream& stream, const DecodeLinear& args) {
    if (args.input == DecodeLinear::Input::gated_norm)
        launch<Form::gated_input>(stream, args, NoActivation{});
    else if (!args.glu)
        launch<Form::plain>(stream, args, NoActivation{});
    else if (args.activation == Activation::none)
        launch<Form::gated_outputs>(stream, args, NoActivation{});
    else if (args.activation == Activation::silu)
        launch<Form::gated_outputs>(stream, args, Silu{});
    else
        launch<Form::gated_outputs>(stream, args, AnyActivation{args.activation});
}

}  // namespace levin::kernels::cuda
