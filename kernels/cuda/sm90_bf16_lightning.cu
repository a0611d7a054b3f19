// Lightning attention on Hopper: wgmma on tiles of 64 tokens, one chain (sequence, head) or segment of it a
// block.
//
// A block is four warpgroups. The loader starts the copies of raw operands into the stages in shared memory
// (TMA); the activator applies silu to them where they lie; two consumers multiply. Each consumer owns 64
// rows of the state KV or dKV [key_dim, value_dim], f32, in registers, and a bf16 copy of it in shared memory
// feeds both. With M, Lambda, W as in SPEC section 2 and E the weights of the update:
//   scan, o:   [(Q K^T) . M] V + Lambda Q KV       KV  = lambda^m KV + (E K)^T V        tokens ascending
//   scan, dq:  [(dO V^T) . M] K + Lambda dO KV^T   the same state
//   key_value: dv = [(K Q^T) . M] dO + W K dKV,    dKV = lambda^m dKV + (E Q)^T dO      tokens descending
//              dk = [(V dO^T) . M] Q + W V dKV^T
// Rows beyond the last token are zero in the tiles. Each product for the state starts from zero and is added
// by one FMA, so that long sums do not inherit the tensor core's truncation.
#include <algorithm>

#include "kernels/cuda/element.cuh"
#include "kernels/cuda/lightning_plan.h"
#include "kernels/cuda/lightning_segments.cuh"
#include "kernels/cuda/sm90_bf16_lightning.h"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/wgmma.cuh"

#ifndef LEVIN_SM90A
#pragma nv_diag_suppress 177  // other architectures get empty kernels, which call nothing of this
#endif

namespace levin::kernels::cuda {

namespace {

constexpr int kTile = 64, kWidth = 128, kUnits = kWidth / 8, kGroup = 128, kConsumers = 2 * kGroup,
              kThreads = 4 * kGroup;
constexpr int kTileBytes = kTile * kWidth * 2, kStateBytes = kWidth * kWidth * 2;

struct Output {
    CUtensorMap map;  // boxes of 16 rows
    Bf16* data;
    int64_t stride;
    int width;
};

struct Work {
    const float* slopes;
    int64_t heads, length, segments, segment_length;
    const int32_t* cu_seqlens;
    int key_dim, value_dim;
    const float* initial;  // [chain, key_dim, value_dim]; nullptr: zero
    float* final;          // nullptr: not wanted
    float* between;        // states at the starts of the segments [chain, segment, key_dim, value_dim];
                           // nullptr: one segment
};
struct ScanWork {
    CUtensorMap x, k, v;  // x: q for o, d_o for dq
    CUtensorMap source;   // dq: raw q
    Output out;
    Work work;
    bool x_silu, k_silu, v_silu, source_silu;
};
struct KeyValueWork {
    CUtensorMap q, k, v, d_o;
    Output dk, dv;
    Work work;
    bool qk_silu;
    const Bf16* raw_v;  // v went through silu; nullptr: it did not
    int64_t raw_v_stride;
};
struct StateWork {
    CUtensorMap a, b;  // state += (E A)^T B
    Work work;
    bool a_silu, b_silu;
};

// The tokens of a block, [from, to) of its sequence, counted from the sequence's end where the walk descends.
// Tile rows are in ascending order either way; a descending walk meets the incomplete tile last, at its upper
// rows.
struct Chain {
    int64_t index, segment, head, begin, end, from, to;
    int batch;          // of the tensor maps: packed documents are one batch
    int64_t map_begin;  // token of the map where the sequence begins
    __device__ explicit Chain(const Work& work) {
        index = blockIdx.x / work.segments;
        segment = blockIdx.x % work.segments;
        head = index % work.heads;
        const int64_t sequence = index / work.heads;
        begin = work.cu_seqlens ? work.cu_seqlens[sequence] : sequence * work.length;
        end = work.cu_seqlens ? work.cu_seqlens[sequence + 1] : begin + work.length;
        batch = work.cu_seqlens ? 0 : static_cast<int>(sequence);
        map_begin = work.cu_seqlens ? begin : 0;
        from = segment * work.segment_length;
        to = work.cu_seqlens ? end - begin : min(from + work.segment_length, end - begin);
    }
    // Token of the sequence in the tile's first row; below zero where the last descending tile is incomplete.
    template <int STEP>
    __device__ int64_t first(int64_t done) const {
        return STEP > 0 ? done : end - begin - done - kTile;
    }
    __device__ int rows(int64_t done) const { return static_cast<int>(min(int64_t{kTile}, to - done)); }
};

// Powers of a chain's decay: fall[n] = lambda^n for n >= 0, zero for -64 <= n < 0; rise[n] = lambda^-n, n >=
// 0.
struct Powers {
    const float *fall, *rise;
    __device__ Powers(float* table, double slope) : fall(table + kTile), rise(table + 2 * kTile + 1) {
        if (threadIdx.x < 3 * kTile + 2) {
            const int n = static_cast<int>(threadIdx.x) - kTile;
            table[threadIdx.x] = n < 0        ? 0.0f
                                 : n <= kTile ? static_cast<float>(exp(-slope * n))
                                              : static_cast<float>(exp(slope * (n - kTile - 1)));
        }
    }
};

// Whose turn it is among the stages, and the parity of their barriers.
template <int STAGES>
struct Turn {
    int stage = 0;
    uint32_t parity = 0;
    __device__ void next() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
};

// A stage's life: loaded (raw operands have arrived), full (activated), empty (consumed).
template <int STAGES>
struct Pipeline {
    uint32_t loaded, full, empty;
    __device__ explicit Pipeline(uint32_t base)
        : loaded(base), full(base + 8 * STAGES), empty(base + 16 * STAGES) {
        if (threadIdx.x == 0)
            for (int i = 0; i < STAGES; ++i) {
                initialize_barrier(loaded + 8 * i, 1);
                initialize_barrier(full + 8 * i, kGroup / 32);
                initialize_barrier(empty + 8 * i, kConsumers / 32);
            }
    }
    // loader
    __device__ uint32_t acquire(const Turn<STAGES>& turn, uint32_t bytes) const {
        wait_barrier(empty + 8 * turn.stage, turn.parity ^ 1);
        arrive_and_expect(loaded + 8 * turn.stage, bytes);
        return loaded + 8 * turn.stage;
    }
    // activator
    __device__ void wait_loaded(const Turn<STAGES>& turn) const {
        wait_barrier(loaded + 8 * turn.stage, turn.parity);
    }
    __device__ void publish(const Turn<STAGES>& turn) const {
        publish_to_products();
        one_of_warp_arrives(full + 8 * turn.stage);
    }
    // consumers; they too wait for the copies, which no ordinary store stands for
    __device__ void wait_full(const Turn<STAGES>& turn) const {
        wait_barrier(loaded + 8 * turn.stage, turn.parity);
        wait_barrier(full + 8 * turn.stage, turn.parity);
    }
    __device__ void release(const Turn<STAGES>& turn) const { one_of_warp_arrives(empty + 8 * turn.stage); }

private:
    __device__ static void one_of_warp_arrives(uint32_t barrier) {
        __syncwarp();
        if (threadIdx.x % 32 == 0) arrive(barrier);
    }
};

// Loads a tile: two panels of 64 columns.
__device__ inline void fetch_tile(uint32_t to, const CUtensorMap& map, const Chain& chain, int64_t first,
                                  uint32_t barrier) {
    const int token = static_cast<int>(chain.map_begin + first), head = static_cast<int>(chain.head);
    fetch_box(to, map, 0, head, token, chain.batch, barrier);
    fetch_box(to + kTileBytes / 2, map, 64, head, token, chain.batch, barrier);
}

// An activator thread's part of a tile: unit t % 16 of rows t / 16 + 8 i. All are read before the first is
// worked on, so that one warp a scheduler hides its own latencies.
struct Units {
    uint4 at[kTile / 8];
    __device__ static int row(int i) { return threadIdx.x % kGroup / kUnits + 8 * i; }
    __device__ static uint32_t address(uint32_t tile, int i) {
        return panel_address<kTile>(tile, row(0), threadIdx.x % kUnits) + i * 1024;
    }
    __device__ explicit Units(uint32_t tile) {
#pragma unroll
        for (int i = 0; i < kTile / 8; ++i) at[i] = load_shared_unit(address(tile, i));
    }
    // Writes body(pair of values, i) for every pair; its row is row(i).
    template <class Body>
    __device__ void write(uint32_t tile, const Body& body) const {
#pragma unroll
        for (int i = 0; i < kTile / 8; ++i) {
            const uint4& v = at[i];
            store_shared_unit(address(tile, i), {body(v.x, i), body(v.y, i), body(v.z, i), body(v.w, i)});
        }
    }
};

__device__ inline void activate(uint32_t tile) {
    Units(tile).write(tile, [](uint32_t raw, int) { return silu(raw); });
}
// silu' of the raw values in `tile`.
__device__ inline uint32_t derivative_of(uint32_t raw) {
    return pack(silu_derivative(low_half(raw)), silu_derivative(high_half(raw)));
}
__device__ inline void differentiate(uint32_t tile) {
    Units(tile).write(tile, [](uint32_t raw, int) { return derivative_of(raw); });
}
// Both from one evaluation.
__device__ inline void activate_and_differentiate(uint32_t tile, uint32_t derivatives) {
    const Units units(tile);
#pragma unroll
    for (int i = 0; i < kTile / 8; ++i) {
        uint32_t value[4], derivative[4];
        const uint32_t raw[4] = {units.at[i].x, units.at[i].y, units.at[i].z, units.at[i].w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const float x = low_half(raw[j]), y = high_half(raw[j]);
            const float s = fast_sigmoid(x), t = fast_sigmoid(y), a = x * s, b = y * t;
            value[j] = pack(a, b);
            derivative[j] = pack(s + a * (1.0f - s), t + b * (1.0f - t));
        }
        store_shared_unit(Units::address(derivatives, i),
                          {derivative[0], derivative[1], derivative[2], derivative[3]});
        store_shared_unit(Units::address(tile, i), {value[0], value[1], value[2], value[3]});
    }
}
// The operand that enters the state: activated and weighted for the update in one rounding. After m tokens of
// an ascending tile row r has weight lambda^(m-1-r); descending, with tokens at the tile's last m rows,
// lambda^(m-63+r). Zero elsewhere. The squares of tokens take the weighted operand too and are scaled back by
// rows (mask below).
template <int STEP>
__device__ inline void weigh(uint32_t tile, bool with_silu, const Powers& powers, int m) {
    const Units units(tile);
    float weight[kTile / 8];
#pragma unroll
    for (int i = 0; i < kTile / 8; ++i)
        weight[i] = STEP > 0 ? powers.fall[m - 1 - Units::row(i)]
                             : powers.fall[1] * powers.fall[m - kTile + Units::row(i)];
    if (with_silu)
        units.write(tile, [&](uint32_t raw, int i) {
            return pack(silu(low_half(raw)) * weight[i], silu(high_half(raw)) * weight[i]);
        });
    else
        units.write(tile, [&](uint32_t raw, int i) {
            return pack(low_half(raw) * weight[i], high_half(raw) * weight[i]);
        });
}

// A consumer thread's place: warpgroup 0 or 1, warp 0..3 in it, lane 4 g + q.
struct Place {
    int group, warp, lane, g, q;
    __device__ Place() {
        const int t = threadIdx.x - (kThreads - kConsumers);
        group = t / 128, warp = t / 32 % 4, lane = t % 32, g = lane / 4, q = lane % 4;
    }
};

// The consumers' part of the state: rows 64 group + 16 warp + g (+ 8), columns 8 j + 2 q (+ 1).
struct State {
    float value[kWidth / 2];
    template <class Body>  // body(value, offset in [key_dim, value_dim]) for all inside
    __device__ void each(const Place& place, const Work& work, const Body& body) {
#pragma unroll
        for (int i = 0; i < kWidth / 2; ++i) {
            const int row = 64 * place.group + 16 * place.warp + place.g + 8 * (i % 4 / 2);
            const int column = 8 * (i / 4) + 2 * place.q + i % 2;
            if (row < work.key_dim && column < work.value_dim) body(value[i], row * work.value_dim + column);
        }
    }
    // The state that this block starts from.
    __device__ void start(const Place& place, const Work& work, const Chain& chain) {
        const int64_t size = int64_t{work.key_dim} * work.value_dim;
        const float* from = work.between ? work.between + (chain.index * work.segments + chain.segment) * size
                            : work.initial ? work.initial + chain.index * size
                                           : nullptr;
#pragma unroll
        for (float& v : value) v = 0;
        if (from) each(place, work, [&](float& v, int at) { v = from[at]; });
    }
    __device__ void finish(const Place& place, const Work& work, const Chain& chain) {
        if (!work.final || chain.segment != work.segments - 1) return;
        float* to = work.final + chain.index * work.key_dim * work.value_dim;
        each(place, work, [&](float& v, int at) { to[at] = v; });
    }
    __device__ void add(float decay, const float (&product)[kWidth / 2]) {
#pragma unroll
        for (int i = 0; i < kWidth / 2; ++i) value[i] = decay * value[i] + product[i];
    }
    // bf16 copy for the products of both consumers
    __device__ void copy(const Place& place, uint32_t to) const {
        const int row = 64 * place.group + 16 * place.warp + place.lane % 16;
#pragma unroll
        for (int j = 0; j < kUnits; j += 2)
            store_fragments(panel_address<kWidth>(to, row, j + place.lane / 16),
                            pack(value[4 * j], value[4 * j + 1]), pack(value[4 * j + 2], value[4 * j + 3]),
                            pack(value[4 * j + 4], value[4 * j + 5]),
                            pack(value[4 * j + 6], value[4 * j + 7]));
        publish_to_products();
    }
};

// Starts product [64 rows of the state, 128] = A^T B, both [64 tokens, 128], A weighted.
__device__ inline void multiply_for_state(float (&product)[kWidth / 2], uint32_t a, uint32_t b, int group) {
#pragma unroll
    for (int k = 0; k < kTile / 16; ++k)
        multiply<true, true>(product, turned<kTile>(a, group, k), turned<kTile>(b, 0, k), k > 0);
    commit_products();
}

// A warp's 16 rows of a tile as left operands of 8 products.
struct LeftRows {
    uint32_t part[kWidth / 16][4];
    __device__ LeftRows(uint32_t tile, const Place& place) {
#pragma unroll
        for (int k = 0; k < kWidth / 16; ++k)
            load_fragments(part[k], panel_address<kTile>(tile, 16 * place.warp + place.lane % 16,
                                                         2 * k + place.lane / 16));
    }
};

// The square, made with or for an operand weighted as above, with the decay between its tokens: pairs in the
// wrong order are zero, row r is scaled by lambda^(r-m+1) ascending, lambda^(63-r-m) descending.
template <int STEP>
__device__ inline void mask(const float (&square)[kTile / 2], uint32_t (&masked)[kTile / 4],
                            const Powers& powers, const Place& place, int m) {
    const int row = 16 * place.warp + place.g, column = 2 * place.q;
    float scale[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int r = row + 8 * half;
        // exponent <= 0 for rows that are tokens; the others' values are not used
        scale[half] = powers.rise[max(STEP > 0 ? m - 1 - r : m - kTile + 1 + r, 0)];
    }
#pragma unroll
    for (int i = 0; i < kTile / 4; ++i) {
        const int after =
            STEP * (row + 8 * (i % 2) - column - 8 * (i / 2));  // how far the row is behind the column
        const float low = square[2 * i] * scale[i % 2], high = square[2 * i + 1] * scale[i % 2];
        masked[i] = pack(after >= 0 ? low : 0.0f, after >= STEP ? high : 0.0f);
    }
}
// What comes from the state: row r times lambda^(r+1) ascending, lambda^(63-r) descending.
template <int STEP, int N>
__device__ inline void scale_rows(float (&out)[N], const Powers& powers, const Place& place) {
    const int row = 16 * place.warp + place.g;
    const float low = powers.fall[STEP > 0 ? row + 1 : kTile - 1 - row],
                high = powers.fall[STEP > 0 ? row + 9 : kTile - 9 - row];
#pragma unroll
    for (int i = 0; i < N; ++i) out[i] *= i % 4 < 2 ? low : high;
}
template <int N>
__device__ inline void multiply_masked(float (&out)[N], const uint32_t (&masked)[kTile / 4], uint32_t tile,
                                       int first_panel) {
#pragma unroll
    for (int k = 0; k < kTile / 16; ++k) {
        const uint32_t a[4] = {masked[4 * k], masked[4 * k + 1], masked[4 * k + 2], masked[4 * k + 3]};
        multiply<true>(out, a, turned<kTile>(tile, first_panel, k), true);
    }
    commit_products();
}

// A warp's 16 rows of `out`, columns from `panel` on, times the derivatives in the tile `through` where asked
// for, to memory by way of that tile's same place, which belongs to this warp. The copy is under way when
// this returns.
template <int STEP, int N>
__device__ inline void write_rows(float (&out)[N], uint32_t through, bool derivatives, const Output& output,
                                  const Chain& chain, int64_t done, int panel, const Place& place) {
    const int row = 16 * place.warp + place.lane % 16, m = chain.rows(done);
#pragma unroll
    for (int j = 0; j < N / 4; j += 2) {
        const uint32_t at = panel_address<kTile>(through, row, 8 * panel + j + place.lane / 16);
        float* v = &out[4 * j];
        if (derivatives) {
            uint32_t d[4];
            load_fragments(d, at);
#pragma unroll
            for (int i = 0; i < 4; ++i) v[2 * i] *= low_half(d[i]), v[2 * i + 1] *= high_half(d[i]);
        }
        store_fragments(at, pack(v[0], v[1]), pack(v[2], v[3]), pack(v[4], v[5]), pack(v[6], v[7]));
    }
    const int first = static_cast<int>(chain.first<STEP>(done));
    const int warp_rows = 16 * place.warp;  // the first of this warp's
    const int low = STEP > 0 ? 0 : kTile - m,
              high = STEP > 0 ? m : kTile;  // rows of the tile that are tokens
    if (low <= warp_rows && warp_rows + 16 <= high) {
        publish_to_products();
        __syncwarp();
        if (place.lane == 0)
#pragma unroll
            for (int p = panel; p < panel + N / 32 && 64 * p < output.width; ++p)
                store_box(output.map, 64 * p, static_cast<int>(chain.head),
                          static_cast<int>(chain.map_begin) + first + warp_rows, chain.batch,
                          panel_address<kTile>(through, warp_rows, 8 * p));
    } else {
        // The copy engine would write the neighbouring document's rows, and takes no row before the first.
        __syncwarp();
        for (int i = place.lane; i < 4 * N; i += 32) {
            const int r = warp_rows + i / (N / 4), unit = 8 * panel + i % (N / 4);
            if (low <= r && r < high && unit * 8 < output.width)
                *reinterpret_cast<uint4*>(output.data + (chain.begin + first + r) * output.stride +
                                          chain.head * output.width + unit * 8) =
                    load_shared_unit(panel_address<kTile>(through, r, unit));
        }
    }
    __syncwarp();  // products need whole warps
}
// Before a tile that write_rows went through is given back.
__device__ inline void finish_rows(const Place& place) {
    if (place.lane == 0) wait_boxes_read();
}

// Shared memory of a kernel: barriers and powers, then stages of TILES tiles, STATES copies of the state.
template <int STAGES, int TILES, int STATES>
struct Memory {
    static constexpr int kStages = STAGES, kPowers = 160, kTiles = 1024, kStage = TILES * kTileBytes,
                         kStates = kTiles + STAGES * kStage, kBytes = kStates + STATES * kStateBytes;
    static_assert(24 * STAGES <= kPowers && kPowers + 4 * (3 * kTile + 2) <= kTiles);
    static_assert(kBytes + 1024 <= 227 * 1024);
};
template <bool DQ>
using ScanMemory = Memory<DQ ? 2 : 3, DQ ? 4 : 3, 2>;
using KeyValueMemory = Memory<2, 5, 2>;
using StateMemory = Memory<6, 2, 0>;

extern __shared__ __align__(16) unsigned char dynamic_memory[];
__device__ inline unsigned char* aligned_memory() {
    const uint32_t address = shared_address(dynamic_memory);
    return dynamic_memory + ((1024 - address % 1024) & 1023);
}

// Everything a role needs; what differs between kernels is in the functions below.
template <class M>
struct Block {
    unsigned char* memory = aligned_memory();
    uint32_t base = shared_address(memory);
    Chain chain;
    Pipeline<M::kStages> pipeline{base};
    Powers powers;
    __device__ Block(const Work& work, const Chain& tokens)
        : chain(tokens), powers(reinterpret_cast<float*>(memory + M::kPowers), work.slopes[tokens.head]) {
        __syncthreads();
    }
    using Turn = levin::kernels::cuda::Turn<M::kStages>;
    __device__ uint32_t stage(const Turn& turn) const { return base + M::kTiles + turn.stage * M::kStage; }
    template <class Body>  // body(turn, done) for every tile
    __device__ void each_tile(const Body& body) const {
        Turn turn;
        for (int64_t done = chain.from; done < chain.to; done += kTile, turn.next()) body(turn, done);
    }
    // Loads the given operands into the first tiles of each stage: one thread's work.
    template <int STEP, class... Maps>
    __device__ void load(const Maps&... maps) const {
        if (threadIdx.x != 0) return;
        each_tile([&](const Turn& turn, int64_t done) {
            const uint32_t barrier = pipeline.acquire(turn, sizeof...(maps) * kTileBytes);
            uint32_t to = stage(turn);
            ((fetch_tile(to, maps, chain, chain.template first<STEP>(done), barrier), to += kTileBytes), ...);
        });
    }
};

enum class Role { load, activate, consume };
__device__ inline Role role() {
    const int group = threadIdx.x / kGroup;
    return group == 0 ? Role::load : group == 1 ? Role::activate : Role::consume;
}

// Tiles of a stage: x, k, v; dq: derivatives of q. Consumer `group` makes columns 64 group .. of the output,
// which goes out through the derivatives or, for o, through q.
template <bool DQ>
__device__ inline void scan_tiles(const ScanWork& scan, const Block<ScanMemory<DQ>>& block) {
    const Place place;
    const uint32_t states = block.base + ScanMemory<DQ>::kStates;
    const Powers& powers = block.powers;
    State state;
    state.start(place, scan.work, block.chain);
    state.copy(place, states);
    synchronize(1, kConsumers);
    int copy = 0;
    block.each_tile([&](const auto& turn, int64_t done) {
        const uint32_t x = block.stage(turn), k_tile = x + kTileBytes, v_tile = k_tile + kTileBytes;
        const uint32_t y = DQ ? v_tile : k_tile, z = DQ ? k_tile : v_tile, old = states + copy * kStateBytes;
        uint32_t masked[kTile / 4];
        float out[kTile / 2], product[kWidth / 2];
        block.pipeline.wait_full(turn);
        {
            const LeftRows left(x, place);
            float square[kTile / 2];
            begin_products();
#pragma unroll
            for (int k = 0; k < kWidth / 16; ++k)
                multiply<false>(square, left.part[k], straight<kTile>(y, 0, k), k > 0);
            commit_products();
#pragma unroll
            for (int k = 0; k < kWidth / 16; ++k)
                multiply<!DQ>(
                    out, left.part[k],
                    DQ ? straight<kWidth>(old, 64 * place.group, k) : turned<kWidth>(old, place.group, k),
                    k > 0);
            commit_products();
            wait_products<1>(square);
            mask<1>(square, masked, powers, place, block.chain.rows(done));
        }
        wait_products<0>(out);
        scale_rows<1>(out, powers, place);
        begin_products();
        multiply_masked(out, masked, z, place.group);
        // Both warps that read these rows of q are done with them.
        if (!DQ) synchronize(2 + place.warp, 64);
        wait_products<0>(out);
        begin_products();
        multiply_for_state(product, k_tile, v_tile, place.group);
        write_rows<1>(out, DQ ? v_tile + kTileBytes : x, DQ && scan.source_silu, scan.out, block.chain, done,
                      place.group, place);
        wait_products<0>(product);
        state.add(powers.fall[block.chain.rows(done)], product);
        copy ^= 1;
        state.copy(place, states + copy * kStateBytes);
        finish_rows(place);
        block.pipeline.release(turn);
        synchronize(1, kConsumers);
    });
    state.finish(place, scan.work, block.chain);
}

template <bool DQ>
__global__ void __launch_bounds__(kThreads, 1) scan_kernel(const __grid_constant__ ScanWork scan) {
#ifdef LEVIN_SM90A
    const Block<ScanMemory<DQ>> block(scan.work, Chain(scan.work));
    if (role() == Role::load) {
        give_registers<24>();
        if constexpr (DQ)
            block.template load<1>(scan.x, scan.k, scan.v, scan.source);
        else
            block.template load<1>(scan.x, scan.k, scan.v);
    } else if (role() == Role::activate) {
        give_registers<72>();
        block.each_tile([&](const auto& turn, int64_t done) {
            const uint32_t x = block.stage(turn), k = x + kTileBytes, v = k + kTileBytes,
                           source = v + kTileBytes;
            block.pipeline.wait_loaded(turn);
            if (scan.x_silu) activate(x);
            weigh<1>(k, scan.k_silu, block.powers, block.chain.rows(done));
            if (scan.v_silu) activate(v);
            if (DQ && scan.source_silu) differentiate(source);
            block.pipeline.publish(turn);
        });
    } else {
        take_registers<208>();
        scan_tiles<DQ>(scan, block);
    }
#endif
}

// Gradients times silu' of v, from memory: only TNL3 activates v.
__device__ inline void multiply_by_v_derivative(float (&out)[kWidth / 2], const KeyValueWork& args,
                                                const Chain& chain, int64_t done, const Place& place) {
    const int m = chain.rows(done), width = args.work.value_dim;
#pragma unroll
    for (int i = 0; i < kWidth / 4; ++i) {
        const int row = 16 * place.warp + place.g + 8 * (i % 2), column = 8 * (i / 2) + 2 * place.q;
        if (row < kTile - m || column >= width) continue;
        const uint32_t raw = *reinterpret_cast<const uint32_t*>(
            args.raw_v + (chain.begin + chain.first<-1>(done) + row) * args.raw_v_stride +
            chain.head * width + column);
        out[2 * i] *= silu_derivative(low_half(raw));
        out[2 * i + 1] *= silu_derivative(high_half(raw));
    }
    __syncwarp();
}

// Tiles of a stage: q, k, v, d_o, derivatives of k. Makes dv, or DK: dk. dv goes out through the tile of k,
// which only its maker reads.
template <bool DK>
__device__ inline void make_gradient(const KeyValueWork& args, const Block<KeyValueMemory>& block,
                                     const Place& place) {
    const uint32_t states = block.base + KeyValueMemory::kStates;
    const Powers& powers = block.powers;
    State state;
    state.start(place, args.work, block.chain);
    state.copy(place, states);
    synchronize(1, kConsumers);
    int copy = 0;
    block.each_tile([&](const auto& turn, int64_t done) {
        const uint32_t q = block.stage(turn), k_tile = q + kTileBytes, v = k_tile + kTileBytes,
                       d_o = v + kTileBytes, derivatives = d_o + kTileBytes,
                       old = states + copy * kStateBytes;
        uint32_t masked[kTile / 4];
        float out[kWidth / 2];
        block.pipeline.wait_full(turn);
        {
            const uint32_t left = DK ? v : k_tile;
            float square[kTile / 2];
            begin_products();
#pragma unroll
            for (int k = 0; k < kWidth / 16; ++k)
                multiply<false, false>(square, straight<kTile>(left, 0, k),
                                       straight<kTile>(DK ? d_o : q, 0, k), k > 0);
            commit_products();
#pragma unroll
            for (int k = 0; k < kWidth / 16; ++k)
                multiply<false, !DK>(out, straight<kTile>(left, 0, k),
                                     DK ? straight<kWidth>(old, 0, k) : turned<kWidth>(old, 0, k), k > 0);
            commit_products();
            wait_products<1>(square);
            mask<-1>(square, masked, powers, place, block.chain.rows(done));
        }
        wait_products<0>(out);
        scale_rows<-1>(out, powers, place);
        begin_products();
        multiply_masked(out, masked, DK ? q : d_o, 0);
        wait_products<0>(out);
        if (!DK) synchronize(2, kGroup);  // all are done with k
        if (!DK && args.raw_v) multiply_by_v_derivative(out, args, block.chain, done, place);
        write_rows<-1>(out, DK ? derivatives : k_tile, DK && args.qk_silu, DK ? args.dk : args.dv,
                       block.chain, done, 0, place);
        float product[kWidth / 2];
        begin_products();
        multiply_for_state(product, q, d_o, place.group);
        wait_products<0>(product);
        state.add(powers.fall[block.chain.rows(done)], product);
        copy ^= 1;
        state.copy(place, states + copy * kStateBytes);
        finish_rows(place);
        block.pipeline.release(turn);
        synchronize(1, kConsumers);
    });
    state.finish(place, args.work, block.chain);
}

// Consumer 0 makes dv, consumer 1 dk.
__global__ void __launch_bounds__(kThreads, 1) key_value_kernel(const __grid_constant__ KeyValueWork args) {
#ifdef LEVIN_SM90A
    const Block<KeyValueMemory> block(args.work, Chain(args.work));
    if (role() == Role::load) {
        give_registers<24>();
        block.load<-1>(args.q, args.k, args.v, args.d_o);
    } else if (role() == Role::activate) {
        give_registers<72>();
        block.each_tile([&](const auto& turn, int64_t done) {
            const uint32_t q = block.stage(turn), k = q + kTileBytes, v = k + kTileBytes,
                           derivatives = v + 2 * kTileBytes;
            block.pipeline.wait_loaded(turn);
            weigh<-1>(q, args.qk_silu, block.powers, block.chain.rows(done));
            if (args.qk_silu) activate_and_differentiate(k, derivatives);
            if (args.raw_v) activate(v);
            block.pipeline.publish(turn);
        });
    } else {
        take_registers<208>();
        const Place place;
        if (place.group == 0)
            make_gradient<false>(args, block, place);
        else
            make_gradient<true>(args, block, place);
    }
#endif
}

// Tokens so far from the end of [from, to) that their power is zero in f32 change nothing.
__device__ inline Chain without_faded(const Work& work) {
    Chain chain(work);
    const float reach = 104.0f / work.slopes[chain.head] + kTile;
    if (reach < static_cast<float>(chain.to - chain.from))
        chain.from += (chain.to - chain.from - static_cast<int64_t>(reach)) / kTile * kTile;
    return chain;
}

// What each segment adds to the state, for segments that have a next one. STEP 1: KV, -1: dKV.
template <int STEP>
__global__ void __launch_bounds__(kThreads, 1) state_kernel(const __grid_constant__ StateWork args) {
#ifdef LEVIN_SM90A
    if (blockIdx.x % args.work.segments == args.work.segments - 1) return;
    const Block<StateMemory> block(args.work, without_faded(args.work));
    if (role() == Role::load) {
        give_registers<24>();
        block.load<STEP>(args.a, args.b);
    } else if (role() == Role::activate) {
        give_registers<72>();
        block.each_tile([&](const auto& turn, int64_t done) {
            const uint32_t a = block.stage(turn);
            block.pipeline.wait_loaded(turn);
            weigh<STEP>(a, args.a_silu, block.powers, block.chain.rows(done));
            if (args.b_silu) activate(a + kTileBytes);
            block.pipeline.publish(turn);
        });
    } else {
        take_registers<208>();
        const Place place;
        State state;
#pragma unroll
        for (float& v : state.value) v = 0;
        block.each_tile([&](const auto& turn, int64_t done) {
            const uint32_t a = block.stage(turn);
            float product[kWidth / 2];
            block.pipeline.wait_full(turn);
            begin_products();
            multiply_for_state(product, a, a + kTileBytes, place.group);
            wait_products<0>(product);
            block.pipeline.release(turn);
            state.add(block.powers.fall[block.chain.rows(done)], product);
        });
        float* to = args.work.between + int64_t{blockIdx.x} * args.work.key_dim * args.work.value_dim;
        state.each(place, args.work, [&](float& v, int at) { to[at] = v; });
    }
#endif
}

template <class Args>
void launch(void (*kernel)(Args), int bytes, int64_t blocks, cudaStream_t stream, const Args& args) {
    LEVIN_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes + 1024));
    kernel<<<static_cast<unsigned>(blocks), kThreads, bytes + 1024, stream>>>(args);
    LEVIN_CUDA_LAUNCHED();
}

Work work_of(const LightningShape& shape, const SegmentPlan& plan) {
    Work work{};
    work.slopes = shape.slopes;
    work.heads = shape.heads;
    work.length = shape.length;
    work.segments = plan.segments;
    work.segment_length = plan.segment_length;
    work.cu_seqlens = shape.cu_seqlens;
    work.key_dim = static_cast<int>(shape.key_dim);
    work.value_dim = static_cast<int>(shape.value_dim);
    return work;
}

struct Mapped {
    CUtensorMap map;
    bool silu;
    Mapped(const LightningShape& shape, const void* data, int64_t stride, int64_t width,
           Activation activation)
        : map(panel_map(data, stride, shape.batch, shape.length, shape.heads, width)),
          silu(activation == Activation::silu) {}
};
Output output_of(const LightningShape& shape, void* data, int64_t stride, int64_t width) {
    return {panel_map(data, stride, shape.batch, shape.length, shape.heads, width, 16),
            static_cast<Bf16*>(data), stride, static_cast<int>(width)};
}

// The states at the starts of the segments, walking forward (STEP 1: KV) or backward (dKV).
template <int STEP>
void states_between(cudaStream_t stream, int64_t chains, const Work& work, const Mapped& a, const Mapped& b) {
    launch(state_kernel<STEP>, StateMemory::kBytes, chains * work.segments, stream,
           StateWork{a.map, b.map, work, a.silu, b.silu});
    launch_states_between(stream, chains,
                          {.initial = work.initial,
                           .between = work.between,
                           .slopes = work.slopes,
                           .heads = work.heads,
                           .segments = work.segments,
                           .segment_length = work.segment_length,
                           .rows = work.key_dim,
                           .columns = work.value_dim,
                           .initial_row = work.value_dim,
                           .initial_column = 1});
}

SegmentPlan plan_for(const Stream& stream, const LightningShape& shape) {
    if (shape.cu_seqlens) return {1, shape.length};
    return plan_segments(shape.sequences() * shape.heads, shape.length, multiprocessors(stream.device.index));
}
// Floats of the states at the starts of all segments.
int64_t between_size(const LightningShape& shape, const SegmentPlan& plan) {
    return plan.segments > 1
               ? shape.sequences() * shape.heads * plan.segments * shape.key_dim * shape.value_dim
               : 0;
}

}  // namespace

int64_t sm90_states_to_keep(const Stream& stream, const LightningShape& shape) {
    return between_size(shape, plan_for(stream, shape));
}

void sm90_lightning_forward(const Stream& stream, const LightningForward& args) {
    const LightningShape& shape = args.shape;
    const cudaStream_t s = use(stream);
    const int64_t chains = shape.sequences() * shape.heads;
    if (chains <= 0 || shape.batch * shape.length == 0) return;
    const SegmentPlan plan = plan_for(stream, shape);
    const Scratch between(s, args.kept_states ? 0 : between_size(shape, plan) * sizeof(float));
    const Mapped q(shape, args.q, args.q_stride, shape.key_dim, shape.qk_activation),
        k(shape, args.k, args.k_stride, shape.key_dim, shape.qk_activation),
        v(shape, args.v, args.v_stride, shape.value_dim, shape.v_activation);
    Work work = work_of(shape, plan);
    work.initial = static_cast<const float*>(args.initial_state);
    work.final = static_cast<float*>(args.final_state);
    if (plan.segments > 1) {
        work.between = args.kept_states ? args.kept_states : between.as<float>();
        states_between<1>(s, chains, work, k, v);
    }
    launch(scan_kernel<false>, ScanMemory<false>::kBytes, chains * plan.segments, s,
           ScanWork{q.map, k.map, v.map, q.map,
                    output_of(shape, args.o, shape.heads * shape.value_dim, shape.value_dim), work, q.silu,
                    k.silu, v.silu, false});
}

void sm90_lightning_backward(const Stream& stream, const LightningBackward& args) {
    const LightningShape& shape = args.shape;
    const cudaStream_t s = use(stream);
    const int64_t chains = shape.sequences() * shape.heads;
    if (chains <= 0 || shape.batch * shape.length == 0) return;
    const SegmentPlan plan = plan_for(stream, shape);
    const Scratch between(s, between_size(shape, plan) * sizeof(float));
    const Mapped q(shape, args.q, args.q_stride, shape.key_dim, shape.qk_activation),
        k(shape, args.k, args.k_stride, shape.key_dim, shape.qk_activation),
        v(shape, args.v, args.v_stride, shape.value_dim, shape.v_activation),
        d_o(shape, args.d_o, shape.heads * shape.value_dim, shape.value_dim, Activation::none);
    Work work = work_of(shape, plan);

    work.initial = static_cast<const float*>(args.initial_state);
    if (plan.segments > 1 && args.kept_states) {
        work.between = const_cast<float*>(args.kept_states);  // only read below
    } else if (plan.segments > 1) {
        work.between = between.as<float>();
        states_between<1>(s, chains, work, k, v);
    }
    launch(scan_kernel<true>, ScanMemory<true>::kBytes, chains * plan.segments, s,
           ScanWork{d_o.map, k.map, v.map, q.map, output_of(shape, args.dq, args.dq_stride, shape.key_dim),
                    work, false, k.silu, v.silu, q.silu});

    work.initial = static_cast<const float*>(args.d_final_state);
    work.final = static_cast<float*>(args.d_initial_state);
    if (plan.segments > 1) {
        work.between = between.as<float>();
        states_between<-1>(s, chains, work, q, d_o);
    }
    launch(
        key_value_kernel, KeyValueMemory::kBytes, chains * plan.segments, s,
        KeyValueWork{q.map, k.map, v.map, d_o.map, output_of(shape, args.dk, args.dk_stride, shape.key_dim),
                     output_of(shape, args.dv, args.dv_stride, shape.value_dim), work, q.silu,
                     v.silu ? static_cast<const Bf16*>(args.v) : nullptr, args.v_stride});
}

}  // namespace levin::kernels::cuda
