// How a block of the Hopper lightning kernels (sm90_bf16_lightning.cu) goes over its tokens: what it works
// on, the powers of the decay, shared memory, and the pipeline between the roles.
#pragma once

#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/lightning_plan.h"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/wgmma.cuh"

namespace levin::kernels::cuda::hopper {

constexpr int kTile = 64, kWidth = 128, kUnits = kWidth / 8, kGroup = 128, kConsumers = 2 * kGroup;
constexpr int kTileBytes = kTile * kWidth * 2, kStateBytes = kWidth * kWidth * 2;

// The chains of a launch, [sequence, key head]. Keys wider than a tile come as `parts` key heads for each
// head of values, and so do the outputs of values: sums over the parts are the caller's.
struct Work {
    const float* slopes;
    int64_t chains, key_heads, length;
    int parts;
    SegmentPlan plan;
    const int32_t* cu_seqlens;
    int key_dim, value_dim;
    const float* initial;  // [chain, key_dim, value_dim]; nullptr: zero
    float* final;          // nullptr: not wanted
    float* between;        // [chain, segment], held (lightning_segments.cuh); nullptr: one segment
    bool starts;           // between: states at the starts of the segments; else what each segment adds
    bool just_made;        // between comes from a kernel right before this one, which may still run
};

// The tokens of a block, [from, to) of its sequence, counted from the sequence's end where the walk descends.
// Tile rows are in ascending order either way; a descending walk meets the incomplete tile last, at its upper
// rows. First segments come first: they wait for nothing.
struct Chain {
    int64_t index, segment, key_head, value_head, begin, end, from, to;
    int batch;          // of the tensor maps: packed documents are one batch
    int64_t map_begin;  // token of the map where the sequence begins
    __device__ explicit Chain(const Work& work) {
        index = blockIdx.x % work.chains;
        segment = blockIdx.x / work.chains;
        key_head = index % work.key_heads;
        value_head = key_head / work.parts;
        const int64_t sequence = index / work.key_heads;
        begin = work.cu_seqlens ? work.cu_seqlens[sequence] : sequence * work.length;
        end = work.cu_seqlens ? work.cu_seqlens[sequence + 1] : begin + work.length;
        batch = work.cu_seqlens ? 0 : static_cast<int>(sequence);
        map_begin = work.cu_seqlens ? begin : 0;
        from = segment * work.plan.segment_length;
        to = segment == work.plan.segments - 1 ? end - begin : from + work.plan.segment_length;
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
template <int STAGES, int ACTIVATORS>
struct Pipeline {
    uint32_t loaded, full, empty;
    __device__ explicit Pipeline(uint32_t base)
        : loaded(base), full(base + 8 * STAGES), empty(base + 16 * STAGES) {
        if (threadIdx.x == 0)
            for (int i = 0; i < STAGES; ++i) {
                initialize_barrier(loaded + 8 * i, 1);
                initialize_barrier(full + 8 * i, ACTIVATORS * kGroup);
                initialize_barrier(empty + 8 * i, kConsumers);
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
        all_arrive(full + 8 * turn.stage);
    }
    // consumers; they too wait for the copies, which no ordinary store stands for
    __device__ void wait_full(const Turn<STAGES>& turn) const {
        wait_barrier(loaded + 8 * turn.stage, turn.parity);
        wait_barrier(full + 8 * turn.stage, turn.parity);
    }
    __device__ void release(const Turn<STAGES>& turn) const { all_arrive(empty + 8 * turn.stage); }

private:
    // Every thread for itself: as fast as one for its warp, and racecheck can follow it.
    __device__ static void all_arrive(uint32_t barrier) {
        __syncwarp();  // what the first lane waited for
        arrive(barrier);
    }
};

// A kernel's warpgroups: loader, activator, two consumers, and a second activator where there are two. Its
// shared memory: barriers and powers, then stages of TILES tiles, STATES copies of the state.
template <int STAGES, int TILES, int STATES, int ACTIVATORS = 1>
struct Layout {
    static constexpr int kThreads = (3 + ACTIVATORS) * kGroup, kActivators = ACTIVATORS;
    // Registers of a thread by role. They share what the block has at its start: a role that asks for more
    // waits for ever.
    static constexpr int kAtStart = 65536 / kThreads / 8 * 8, kForLoader = 24,
                         kForActivator = ACTIVATORS == 1 ? 72 : 64,
                         kForConsumer = ACTIVATORS == 1 ? 208 : 160;
    static_assert(kForLoader + ACTIVATORS * kForActivator + 2 * kForConsumer <= (3 + ACTIVATORS) * kAtStart);
    static constexpr int kStages = STAGES, kPowers = 160, kTiles = 1024, kStage = TILES * kTileBytes,
                         kStates = kTiles + STAGES * kStage, kBytes = kStates + STATES * kStateBytes;
    static_assert(24 * STAGES <= kPowers && kPowers + 4 * (3 * kTile + 2) <= kTiles);
    static_assert(kBytes + 1024 <= 227 * 1024);
};

extern __shared__ __align__(16) unsigned char dynamic_memory[];
__device__ inline unsigned char* aligned_memory() {
    const uint32_t address = shared_address(dynamic_memory);
    return dynamic_memory + ((1024 - address % 1024) & 1023);
}

// An operand and which of its heads a block reads.
struct Source {
    const CUtensorMap& map;
    int64_t head;
};

// Everything a role needs; what differs between kernels is in their own functions.
template <class L>
struct Block {
    unsigned char* memory = aligned_memory();
    uint32_t base = shared_address(memory);
    Chain chain;
    Pipeline<L::kStages, L::kActivators> pipeline{base};
    Powers powers;
    __device__ Block(const Work& work, const Chain& tokens)
        : chain(tokens),
          powers(reinterpret_cast<float*>(memory + L::kPowers), work.slopes[tokens.value_head]) {
        let_next_kernel_start();
        __syncthreads();
    }
    using Turn = hopper::Turn<L::kStages>;
    __device__ uint32_t stage(const Turn& turn) const { return base + L::kTiles + turn.stage * L::kStage; }
    template <class Body>  // body(turn, done) for every tile
    __device__ void each_tile(const Body& body) const {
        Turn turn;
        for (int64_t done = chain.from; done < chain.to; done += kTile, turn.next()) body(turn, done);
    }
    __device__ Source of_keys(const CUtensorMap& map) const { return {map, chain.key_head}; }
    __device__ Source of_values(const CUtensorMap& map) const { return {map, chain.value_head}; }
    // Loads the given operands into the first tiles of each stage: one thread's work.
    template <int STEP, class... Sources>
    __device__ void load(const Sources&... sources) const {
        if (threadIdx.x != 0) return;
        each_tile([&](const Turn& turn, int64_t done) {
            const uint32_t barrier = pipeline.acquire(turn, sizeof...(sources) * kTileBytes);
            const int64_t first = chain.template first<STEP>(done);
            uint32_t to = stage(turn);
            ((fetch_tile(to, sources, first, barrier), to += kTileBytes), ...);
        });
    }

private:
    // Two panels of 64 columns.
    __device__ void fetch_tile(uint32_t to, const Source& source, int64_t first, uint32_t barrier) const {
        const int token = static_cast<int>(chain.map_begin + first), head = static_cast<int>(source.head);
        fetch_box(to, source.map, 0, head, token, chain.batch, barrier);
        fetch_box(to + kTileBytes / 2, source.map, 64, head, token, chain.batch, barrier);
    }
};

enum class Role { load, activate, consume };
__device__ inline Role role() {
    const int group = threadIdx.x / kGroup;
    return group == 0 ? Role::load : group == 1 || group == 4 ? Role::activate : Role::consume;
}

// A consumer thread's place: warpgroup 0 or 1, warp 0..3 in it, lane 4 g + q.
struct Place {
    int group, warp, lane, g, q;
    __device__ Place() {
        const int t = threadIdx.x - 2 * kGroup;
        group = t / 128, warp = t / 32 % 4, lane = t % 32, g = lane / 4, q = lane % 4;
    }
};

}  // namespace levin::kernels::cuda::hopper
