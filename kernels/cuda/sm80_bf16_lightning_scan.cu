#include <algorithm>

#include "kernels/cuda/element.cuh"
#include "kernels/cuda/lightning_plan.h"
#include "kernels/cuda/lightning_segments.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/sm80_bf16_lightning_scan.h"

namespace levin::kernels::cuda {

namespace {

constexpr int kTile = 64, kThreads = 256, kMaxScans = 3;

struct Operand {
    const Bf16* data;
    int64_t stride;
    int width;
    bool silu;
};

// One row of the table in lightning_scan.cuh.
struct Scan {
    Operand x, y, z;
    Operand source;  // data == nullptr: no activation to go back through
    Bf16* out;       // nullptr: only the state is wanted
    int64_t out_stride;
    bool reverse;
    const float* initial;  // nullptr: zero
    float* final;          // nullptr: not wanted
    int64_t state_row, state_column;
    float* between;  // states at the starts of the segments, [chain, segment, x.width, z.width]; nullptr: one
                     // segment
};

struct ScanLaunch {
    Scan scan[kMaxScans];
    const float* slopes;
    int64_t heads, length, segments, segment_length, state_size;
    const int32_t* cu_seqlens;
};

// A: inner width of a tile (64, 128 or 256), B: columns of a block (64 or 128).
template <int A, int B>
struct Tiles {
    static constexpr int kInnerUnits = A / 8, kColumnUnits = B / 8;
    static constexpr int kInnerBytes = kTile * A * 2, kColumnBytes = kTile * B * 2;
    static constexpr int kStage = 2 * kInnerBytes + kColumnBytes;  // x, y, z
    static constexpr int kState = 2 * kStage, kSquare = kState + A * B * 2,
                         kSource = kSquare + kTile * kTile * 2;
    static constexpr int kPowers = kSource + kColumnBytes, kBytes = kPowers + (2 * kTile + 2) * 4;
};

// Starts copying columns begin .. begin + UNITS * 8 of a tile's rows. Each thread keeps the same unit of
// every row.
template <int UNITS>
__device__ inline void fetch(const Operand& operand, int64_t head, int64_t first, int step, int rows,
                             int begin, uint32_t tile) {
    const int unit = threadIdx.x % UNITS, column = begin + unit * 8;
    const bool inside = column < operand.width;
    const Bf16* from = operand.data + head * operand.width + (inside ? column : 0);
#pragma unroll
    for (int i = 0; i < kTile * UNITS / kThreads; ++i) {
        const int row = threadIdx.x / UNITS + i * (kThreads / UNITS);
        const bool valid = inside && row < rows;
        copy_async(tile_address<UNITS>(tile, row, unit),
                   from + (valid ? first + step * row : first) * operand.stride, valid);
    }
}
// The same units of the same thread, once they have arrived.
template <int UNITS>
__device__ inline void apply_silu(uint32_t tile) {
    const int unit = threadIdx.x % UNITS;
#pragma unroll
    for (int i = 0; i < kTile * UNITS / kThreads; ++i) {
        const int row = threadIdx.x / UNITS + i * (kThreads / UNITS);
        const uint32_t address = tile_address<UNITS>(tile, row, unit);
        uint4 v = load_shared_unit(address);
        v.x = silu(v.x), v.y = silu(v.y), v.z = silu(v.z), v.w = silu(v.w);
        store_shared_unit(address, v);
    }
}

// Blocks of a multiprocessor: what registers and shared memory allow.
template <int A, int B>
constexpr int kResident = A == 64 && B == 64 ? 2 : 1;

// Eight warps as 2 x 4. Warp (wr, wc) owns rows 32 wr .. of a tile of Out and rows A/2 wr .. of the state,
// columns B/4 wc .. of both, and the 32 x 16 part (wr, wc) of the square. The state lives in registers; a
// bf16 copy in shared memory feeds the product with X.
template <int A, int B, bool STATES_ONLY>
__global__ void __launch_bounds__(kThreads, kResident<A, B>)
    mma_scan_kernel(const __grid_constant__ ScanLaunch launch) {
    using T = Tiles<A, B>;
    constexpr int kColumns = B / 4, kN = kColumns / 8,
                  kM = A / 32;  // a warp's columns, and 8- and 16-wide pieces
    extern __shared__ __align__(128) unsigned char memory[];
    const Scan& scan = launch.scan[blockIdx.z];
    const uint32_t base = shared_address(memory);
    const uint32_t state_tile = base + T::kState, square_tile = base + T::kSquare,
                   source_tile = base + T::kSource;
    // powers[kTile + n] = lambda^n for n >= 0, zero below
    float* powers = reinterpret_cast<float*>(memory + T::kPowers);

    const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32, wr = warp / 4, wc = warp % 4;
    const int g = lane / 4, q = lane % 4;
    const int64_t chain = blockIdx.x / launch.segments, segment = blockIdx.x % launch.segments;
    const int64_t sequence = chain / launch.heads, head = chain % launch.heads;
    const int64_t begin = launch.cu_seqlens ? launch.cu_seqlens[sequence] : sequence * launch.length;
    const int64_t end = launch.cu_seqlens ? launch.cu_seqlens[sequence + 1] : begin + launch.length;
    const int64_t from = segment * launch.segment_length;
    const int64_t to = launch.cu_seqlens ? end - begin : min(from + launch.segment_length, end - begin);
    if (STATES_ONLY && segment == launch.segments - 1) return;
    const int column = blockIdx.y * B, step = scan.reverse ? -1 : 1, shift = scan.reverse ? 0 : 1;
    const bool with_source = scan.source.data != nullptr;

    const double slope = launch.slopes[head];
    if (tid < 2 * kTile + 1)
        powers[tid] = tid < kTile ? 0.0f : static_cast<float>(exp(-slope * (tid - kTile)));

    // Rows and columns of this thread's state elements: a = state_a + 16 i (+ 8), b = state_b + 8 j (+ 1).
    float state[kM][kN][4];
    const int state_a = wr * (A / 2) + g, state_b = wc * kColumns + 2 * q;
    const auto each_state = [&](auto&& body) {
#pragma unroll
        for (int i = 0; i < kM; ++i)
#pragma unroll
            for (int j = 0; j < kN; ++j)
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    const int a = state_a + 16 * i + (k / 2) * 8, b = column + state_b + 8 * j + k % 2;
                    body(state[i][j][k], a, b, a < scan.x.width && b < scan.z.width);
                }
    };
    float* between =
        scan.between ? scan.between + (chain * launch.segments + segment) * launch.state_size : nullptr;
    const int between_row = scan.z.width;
    each_state([&](float& s, int a, int b, bool valid) {
        s = 0;
        if (!valid || STATES_ONLY) return;
        if (between)
            s = between[a * between_row + b];
        else if (scan.initial)
            s = scan.initial[chain * launch.state_size + a * scan.state_row + b * scan.state_column];
    });
    const auto copy_state = [&] {
#pragma unroll
        for (int i = 0; i < kM; ++i)
#pragma unroll
            for (int j = 0; j < kN; ++j)
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const int a = state_a + 16 * i + 8 * half;
                    store_shared(
                        tile_address<T::kColumnUnits>(state_tile, a, wc * (kColumns / 8) + j) + 4 * q,
                        pack(state[i][j][2 * half], state[i][j][2 * half + 1]));
                }
    };
    if (!STATES_ONLY) copy_state();

    const auto first_token = [&](int64_t done) { return scan.reverse ? end - 1 - done : begin + done; };
    const auto rows_at = [&](int64_t done) { return static_cast<int>(min(int64_t{kTile}, to - done)); };
    const auto fetch_stage = [&](int64_t done, uint32_t stage) {
        const int64_t first = first_token(done);
        const int rows = rows_at(done);
        if (!STATES_ONLY) fetch<T::kInnerUnits>(scan.x, head, first, step, rows, 0, stage);
        fetch<T::kInnerUnits>(scan.y, head, first, step, rows, 0, stage + T::kInnerBytes);
        fetch<T::kColumnUnits>(scan.z, head, first, step, rows, column, stage + 2 * T::kInnerBytes);
        commit_copies();
    };
    if (from < to) fetch_stage(from, base);

    int parity = 0;
    for (int64_t done = from; done < to; done += kTile, parity ^= 1) {
        const uint32_t x_tile = base + parity * T::kStage, y_tile = x_tile + T::kInnerBytes,
                       z_tile = y_tile + T::kInnerBytes;
        const int m = rows_at(done);
        const int64_t first = first_token(done);
        wait_copies<0>();
        if (scan.x.silu && !STATES_ONLY) apply_silu<T::kInnerUnits>(x_tile);
        if (scan.y.silu) apply_silu<T::kInnerUnits>(y_tile);
        if (scan.z.silu) apply_silu<T::kColumnUnits>(z_tile);
        __syncthreads();
        if (with_source && !STATES_ONLY)
            fetch<T::kColumnUnits>(scan.source, head, first, step, m, column, source_tile);
        commit_copies();
        if (done + kTile < to)
            fetch_stage(done + kTile, base + (parity ^ 1) * T::kStage);
        else
            commit_copies();

        float out[2][kN][4] = {};
        if (!STATES_ONLY) {
            // Square = (X Y^T) . M and D X S, one sweep over the inner width.
            float square[2][2][4] = {};
#pragma unroll
            for (int k = 0; k < A / 16; ++k) {
                uint32_t x[2][4];
#pragma unroll
                for (int i = 0; i < 2; ++i)
                    load_fragments(x[i], tile_address<T::kInnerUnits>(x_tile, wr * 32 + i * 16 + lane % 16,
                                                                      k * 2 + lane / 16));
                uint32_t y[4];
                load_fragments(y, tile_address<T::kInnerUnits>(y_tile, wc * 16 + lane / 16 * 8 + lane % 8,
                                                               k * 2 + lane / 8 % 2));
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    multiply_add(square[i][0], x[i], y[0], y[1]);
                    multiply_add(square[i][1], x[i], y[2], y[3]);
                }
#pragma unroll
                for (int j = 0; j < kN; j += 2) {
                    uint32_t s[4];
                    load_fragments_transposed(
                        s, tile_address<T::kColumnUnits>(state_tile, k * 16 + lane / 8 % 2 * 8 + lane % 8,
                                                         wc * (kColumns / 8) + j + lane / 16));
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        multiply_add(out[i][j], x[i], s[0], s[1]);
                        multiply_add(out[i][j + 1], x[i], s[2], s[3]);
                    }
                }
            }
#pragma unroll
            for (int i = 0; i < 2; ++i)
#pragma unroll
                for (int j = 0; j < 2; ++j)
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        const int r = wr * 32 + i * 16 + g + 8 * half, c = wc * 16 + j * 8 + 2 * q;
                        const float* decay = powers + kTile + r - c;
                        store_shared(
                            tile_address<kTile / 8>(square_tile, r, wc * 2 + j) + 4 * q,
                            pack(square[i][j][2 * half] * decay[0], square[i][j][2 * half + 1] * decay[-1]));
                    }
#pragma unroll
            for (int i = 0; i < 2; ++i)
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const float decay = powers[kTile + wr * 32 + i * 16 + g + 8 * half + shift];
#pragma unroll
                    for (int j = 0; j < kN; ++j) {
                        out[i][j][2 * half] *= decay;
                        out[i][j][2 * half + 1] *= decay;
                    }
                }
        }
        wait_copies<1>();  // the source tile
        __syncthreads();

        // Out += Square Z, and the tile's share of the state, (E Y)^T Z, from zero: the weights go to Z.
        float product[kM][kN][4] = {};
#pragma unroll
        for (int k = 0; k < kTile / 16; ++k) {
            uint32_t z[kN / 2][4];
#pragma unroll
            for (int j = 0; j < kN / 2; ++j)
                load_fragments_transposed(
                    z[j], tile_address<T::kColumnUnits>(z_tile, k * 16 + lane / 8 % 2 * 8 + lane % 8,
                                                        wc * (kColumns / 8) + 2 * j + lane / 16));
            if (!STATES_ONLY) {
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    uint32_t p[4];
                    load_fragments(p, tile_address<kTile / 8>(square_tile, wr * 32 + i * 16 + lane % 16,
                                                              k * 2 + lane / 16));
#pragma unroll
                    for (int j = 0; j < kN; ++j)
                        multiply_add(out[i][j], p, z[j / 2][j % 2 * 2], z[j / 2][j % 2 * 2 + 1]);
                }
            }
            // lambda^(m - shift - c) for this thread's tokens c; rows beyond m are zero in Z, their weight is
            // not used
            const float* weight = powers + kTile + m - shift - (k * 16 + 2 * q);
            const float w0 = weight[0], w1 = weight[-1], w8 = weight[-8], w9 = weight[-9];
#pragma unroll
            for (int j = 0; j < kN / 2; ++j)
#pragma unroll
                for (int h = 0; h < 4; ++h)
                    z[j][h] =
                        pack(low_half(z[j][h]) * (h % 2 ? w8 : w0), high_half(z[j][h]) * (h % 2 ? w9 : w1));
#pragma unroll
            for (int i = 0; i < kM; ++i) {
                uint32_t y[4];
                load_fragments_transposed(
                    y, tile_address<T::kInnerUnits>(y_tile, k * 16 + lane / 16 * 8 + lane % 8,
                                                    wr * (A / 16) + i * 2 + lane / 8 % 2));
#pragma unroll
                for (int j = 0; j < kN; ++j)
                    multiply_add(product[i][j], y, z[j / 2][j % 2 * 2], z[j / 2][j % 2 * 2 + 1]);
            }
        }
        const float decay = powers[kTile + m];
#pragma unroll
        for (int i = 0; i < kM; ++i)
#pragma unroll
            for (int j = 0; j < kN; ++j)
#pragma unroll
                for (int k = 0; k < 4; ++k) state[i][j][k] = decay * state[i][j][k] + product[i][j][k];
        if (STATES_ONLY) {
            __syncthreads();  // this stage may be filled again
            continue;
        }
        copy_state();

        // Out through shared memory (over X, which is done with), so that whole lines are written.
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int j = 0; j < kN; ++j)
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const int r = wr * 32 + i * 16 + g + 8 * half, unit = wc * (kColumns / 8) + j;
                    float low = out[i][j][2 * half], high = out[i][j][2 * half + 1];
                    if (with_source && scan.source.silu) {
                        const uint32_t raw =
                            load_shared(tile_address<T::kColumnUnits>(source_tile, r, unit) + 4 * q);
                        low *= silu_derivative(low_half(raw));
                        high *= silu_derivative(high_half(raw));
                    }
                    store_shared(tile_address<T::kColumnUnits>(x_tile, r, unit) + 4 * q, pack(low, high));
                }
        __syncthreads();
        const int unit = tid % T::kColumnUnits, to_column = column + unit * 8;
#pragma unroll
        for (int i = 0; i < kTile * T::kColumnUnits / kThreads; ++i) {
            const int row = tid / T::kColumnUnits + i * (kThreads / T::kColumnUnits);
            if (scan.out && row < m && to_column < scan.z.width)
                *reinterpret_cast<uint4*>(scan.out + (first + step * row) * scan.out_stride +
                                          head * scan.z.width + to_column) =
                    load_shared_unit(tile_address<T::kColumnUnits>(x_tile, row, unit));
        }
    }

    if (STATES_ONLY)
        each_state([&](float& s, int a, int b, bool valid) {
            if (valid) between[a * between_row + b] = s;
        });
    else if (scan.final && segment == launch.segments - 1)
        each_state([&](float& s, int a, int b, bool valid) {
            if (valid) scan.final[chain * launch.state_size + a * scan.state_row + b * scan.state_column] = s;
        });
}

template <int A, int B, bool STATES_ONLY>
void launch_kernel(cudaStream_t stream, const dim3& grid, const ScanLaunch& launch) {
    constexpr int kBytes = Tiles<A, B>::kBytes;
    LEVIN_CUDA_CHECK(cudaFuncSetAttribute(mma_scan_kernel<A, B, STATES_ONLY>,
                                          cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
    mma_scan_kernel<A, B, STATES_ONLY><<<grid, kThreads, kBytes, stream>>>(launch);
    LEVIN_CUDA_LAUNCHED();
}

template <int A, int B>
void launch_scans(const Stream& stream, int64_t sequences, int scans, ScanLaunch launch) {
    const cudaStream_t s = use(stream);
    const int64_t chains = sequences * launch.heads;
    if (chains <= 0) return;
    int64_t slices = 1;
    for (int i = 0; i < scans; ++i) slices = std::max(slices, ceil_div(launch.scan[i].z.width, B));
    const int64_t resident = int64_t{multiprocessors(stream.device.index)} * kResident<A, B>;
    const SegmentPlan plan = launch.cu_seqlens
                                 ? SegmentPlan{1, launch.length}
                                 : plan_segments(chains * slices * scans, launch.length, resident);
    launch.segments = plan.segments;
    launch.segment_length = plan.segment_length;
    const size_t states =
        plan.segments > 1 ? static_cast<size_t>(chains * plan.segments * launch.state_size) : 0;
    Scratch between(s, scans * states * sizeof(float));
    const auto size = [](int64_t n) { return static_cast<unsigned>(n); };
    const dim3 grid(size(chains * plan.segments), size(slices), size(scans));
    if (states > 0) {
        for (int i = 0; i < scans; ++i) launch.scan[i].between = between.as<float>() + i * states;
        launch_kernel<A, B, true>(s, grid, launch);
        for (int i = 0; i < scans; ++i) {
            const Scan& scan = launch.scan[i];
            launch_states_between(s, chains,
                                  {.initial = scan.initial,
                                   .between = scan.between,
                                   .slopes = launch.slopes,
                                   .heads = launch.heads,
                                   .parts = 1,
                                   .segments = launch.segments,
                                   .segment_length = launch.segment_length,
                                   .rows = scan.x.width,
                                   .columns = scan.z.width,
                                   .initial_row = scan.state_row,
                                   .initial_column = scan.state_column});
        }
    }
    launch_kernel<A, B, false>(s, grid, launch);
}

// All scans of a launch have tiles of the same size.
void launch_for(const Stream& stream, const LightningShape& shape, int scans, const ScanLaunch& launch) {
    int inner = 0, columns = 0;
    for (int i = 0; i < scans; ++i) {
        inner = std::max(inner, launch.scan[i].x.width);
        columns = std::max(columns, launch.scan[i].z.width);
    }
    if (inner > 128)
        launch_scans<256, 64>(stream, shape.sequences(), scans, launch);
    else if (inner <= 64 && columns <= 64)
        launch_scans<64, 64>(stream, shape.sequences(), scans, launch);
    else
        launch_scans<128, 128>(stream, shape.sequences(), scans, launch);
}

ScanLaunch launch_of(const LightningShape& shape) {
    ScanLaunch launch{};
    launch.slopes = shape.slopes;
    launch.heads = shape.heads;
    launch.length = shape.length;
    launch.state_size = shape.key_width() * shape.value_dim;
    launch.cu_seqlens = shape.cu_seqlens;
    return launch;
}

template <class Args>
struct Operands {
    Operand q, k, v;
    explicit Operands(const Args& args)
        : q(of(args.q, args.q_stride, args.shape.key_dim, args.shape.qk_activation)),
          k(of(args.k, args.k_stride, args.shape.key_dim, args.shape.qk_activation)),
          v(of(args.v, args.v_stride, args.shape.value_dim, args.shape.v_activation)) {}
    static Operand of(const void* data, int64_t stride, int64_t width, Activation activation) {
        return {static_cast<const Bf16*>(data), stride, static_cast<int>(width),
                activation == Activation::silu};
    }
};

}  // namespace

void mma_scan_forward(const Stream& stream, const LightningForward& args) {
    const LightningShape& shape = args.shape;
    const Operands<LightningForward> operands(args);
    ScanLaunch launch = launch_of(shape);
    launch.scan[0] = Scan{operands.q,
                          operands.k,
                          operands.v,
                          {},
                          static_cast<Bf16*>(args.o),
                          shape.heads * shape.value_dim,
                          false,
                          static_cast<const float*>(args.initial_state),
                          static_cast<float*>(args.final_state),
                          shape.value_dim,
                          1,
                          nullptr};
    launch_for(stream, shape, 1, launch);
}

void mma_scan_state(const Stream& stream, const LightningState& args) {
    if (!args.state) return;
    const LightningShape& shape = args.shape;
    const auto operand = [](const void* data, int64_t stride, int64_t width, Activation activation) {
        return Operand{static_cast<const Bf16*>(data), stride, static_cast<int>(width),
                       activation == Activation::silu};
    };
    const Operand keys = operand(args.keys, args.key_stride, shape.key_dim, shape.qk_activation);
    ScanLaunch launch = launch_of(shape);
    launch.scan[0] = Scan{keys,  // for an output that is not written
                          keys,
                          operand(args.values, args.value_stride, shape.value_dim,
                                  args.mirrored ? Activation::none : shape.v_activation),
                          {},
                          nullptr,
                          0,
                          args.mirrored,
                          nullptr,
                          static_cast<float*>(args.state),
                          shape.value_dim,
                          1,
                          nullptr};
    launch_for(stream, shape, 1, launch);
}

void mma_scan_backward(const Stream& stream, const LightningBackward& args) {
    const LightningShape& shape = args.shape;
    const Operands<LightningBackward> operands(args);
    const Operand d_o{static_cast<const Bf16*>(args.d_o), shape.heads * shape.value_dim,
                      static_cast<int>(shape.value_dim), false};
    const auto* initial = static_cast<const float*>(args.initial_state);
    const auto* d_final = static_cast<const float*>(args.d_final_state);
    const auto source = [](const Operand& raw) { return raw.silu ? raw : Operand{}; };
    ScanLaunch launch = launch_of(shape);
    launch.scan[0] = Scan{d_o,
                          operands.v,
                          operands.k,
                          source(operands.q),
                          static_cast<Bf16*>(args.dq),
                          args.dq_stride,
                          false,
                          initial,
                          nullptr,
                          1,
                          shape.value_dim,
                          nullptr};
    launch.scan[1] = Scan{operands.v,
                          d_o,
                          operands.q,
                          source(operands.k),
                          static_cast<Bf16*>(args.dk),
                          args.dk_stride,
                          true,
                          d_final,
                          nullptr,
                          1,
                          shape.value_dim,
                          nullptr};
    launch.scan[2] = Scan{operands.k,
                          operands.q,
                          d_o,
                          source(operands.v),
                          static_cast<Bf16*>(args.dv),
                          args.dv_stride,
                          true,
                          d_final,
                          static_cast<float*>(args.d_initial_state),
                          shape.value_dim,
                          1,
                          nullptr};
    if (shape.key_dim <= 128) return launch_for(stream, shape, 3, launch);
    // Wide keys: dv sums over them and wants other tiles than dq and dk.
    launch_for(stream, shape, 2, launch);
    launch.scan[0] = launch.scan[2];
    launch_for(stream, shape, 1, launch);
}

}  // namespace levin::kernels::cuda
