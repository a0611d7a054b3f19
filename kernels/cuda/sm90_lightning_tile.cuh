// Work on one tile of 64 tokens: activation, the squares of tokens, the state, and rows on their way out.
#pragma once

#include "kernels/cuda/element.cuh"
#include "kernels/cuda/lightning_segments.cuh"
#include "kernels/cuda/sm90_lightning_block.cuh"

namespace levin::kernels::cuda::hopper {

struct Output {
    CUtensorMap map;  // boxes of 16 rows
    Bf16* data;
    int64_t stride;
    int width;
};

// silu' of a pair
__device__ inline uint32_t derivative_of(uint32_t raw) {
    return pack_f16(silu_derivative(low_half(raw)), silu_derivative(high_half(raw)));
}

// What row r of an operand weighs when it enters the state.
template <int STEP>
__device__ inline float weight_of(const Powers& powers, int r, int m) {
    return STEP > 0 ? powers.fall[m - 1 - r] : powers.fall[1] * powers.fall[m - kTile + r];
}

// A thread of N warpgroups that work on a tile in place: its part is unit t % 16 of rows t / 16 + 8 N i. All
// are read before the first is worked on, so that one warp a scheduler hides its own latencies.
template <int N>
struct Activator {
    static constexpr int kRows = kTile / (8 * N);
    struct Units {
        uint4 at[kRows];
        __device__ explicit Units(uint32_t tile) {
#pragma unroll
            for (int i = 0; i < kRows; ++i) at[i] = load_shared_unit(address(tile, i));
        }
        // Writes body(pair of values, i) for every pair; its row is row(i).
        template <class Body>
        __device__ void write(uint32_t tile, const Body& body) const {
#pragma unroll
            for (int i = 0; i < kRows; ++i) {
                const uint4& v = at[i];
                store_shared_unit(address(tile, i), {body(v.x, i), body(v.y, i), body(v.z, i), body(v.w, i)});
            }
        }
    };

    __device__ static int row(int i) {
        const int t = threadIdx.x % kGroup + (threadIdx.x / kGroup > 1 ? kGroup : 0);
        return t / kUnits + 8 * N * i;
    }
    __device__ static uint32_t address(uint32_t tile, int i) {
        return panel_address<kTile>(tile, row(0), threadIdx.x % kUnits) + i * N * 1024;
    }

    __device__ static void activate(uint32_t tile) {
        Units(tile).write(tile, [](uint32_t raw, int) { return silu(raw); });
    }
    // silu' of the raw values in `tile`, as f16.
    __device__ static void differentiate(uint32_t tile) {
        Units(tile).write(tile, [](uint32_t raw, int) { return derivative_of(raw); });
    }
    // Both from one evaluation; the derivatives as f16.
    __device__ static void activate_and_differentiate(uint32_t tile, uint32_t derivatives) {
        const Units units(tile);
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
            uint32_t value[4], derivative[4];
            const uint32_t raw[4] = {units.at[i].x, units.at[i].y, units.at[i].z, units.at[i].w};
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const float x = low_half(raw[j]), y = high_half(raw[j]);
                const float s = fast_sigmoid(x), t = fast_sigmoid(y), a = x * s, b = y * t;
                value[j] = pack(a, b);
                derivative[j] = pack_f16(fmaf(a, 1.0f - s, s), fmaf(b, 1.0f - t, t));
            }
            store_shared_unit(address(derivatives, i),
                              {derivative[0], derivative[1], derivative[2], derivative[3]});
            store_shared_unit(address(tile, i), {value[0], value[1], value[2], value[3]});
        }
    }
    // The operand that enters the state: activated and weighted for the update in one rounding. After m
    // tokens of an ascending tile row r has weight lambda^(m-1-r); descending, with tokens at the tile's last
    // m rows, lambda^(m-63+r). Zero elsewhere. `weighted` may be the tile itself.
    template <int STEP>
    __device__ static void weigh(uint32_t tile, uint32_t weighted, bool with_silu, const Powers& powers,
                                 int m) {
        const Units units(tile);
        float weight[kRows];
#pragma unroll
        for (int i = 0; i < kRows; ++i) weight[i] = weight_of<STEP>(powers, row(i), m);
        if (with_silu) {
#pragma unroll
            for (float& w : weight) w *= 0.5f;
            units.write(weighted, [&](uint32_t raw, int i) {
                return pack(weighted_silu(low_half(raw), weight[i]),
                            weighted_silu(high_half(raw), weight[i]));
            });
        } else {
            units.write(weighted, [&](uint32_t raw, int i) {
                return pack(low_half(raw) * weight[i], high_half(raw) * weight[i]);
            });
        }
    }
};

// The consumers' part of the state: rows 64 group + 16 warp + g (+ 8), columns 8 j + 2 q (+ 1).
struct State {
    float value[kWidth / 2];
    // body(value, right neighbour's value, offset in [key_dim, value_dim]) for all inside
    template <class Body>
    __device__ void each_pair(const Place& place, const Work& work, const Body& body) {
#pragma unroll
        for (int i = 0; i < kWidth / 2; i += 2) {
            const int row = 64 * place.group + 16 * place.warp + place.g + 8 * (i % 4 / 2);
            const int column = 8 * (i / 4) + 2 * place.q;
            if (row < work.key_dim && column < work.value_dim)
                body(value[i], value[i + 1], row * work.value_dim + column);
        }
    }
    // body(four values, offset in a held state) for all
    template <class Body>
    __device__ void each_four(const Place& place, const Body& body) {
        const int thread = kGroup * place.group + 32 * place.warp + place.lane;
#pragma unroll
        for (int i = 0; i < kWidth / 8; ++i) body(&value[4 * i], 4 * (kConsumers * i + thread));
    }
    // value = decay * value + the state held at `from`, which is read once
    __device__ void take(const Place& place, float decay, const float* from) {
        each_four(place, [&](float* v, int at) {
            const float4 added = __ldcg(reinterpret_cast<const float4*>(from + at));
            v[0] = decay * v[0] + added.x, v[1] = decay * v[1] + added.y;
            v[2] = decay * v[2] + added.z, v[3] = decay * v[3] + added.w;
        });
    }
    __device__ void hold(const Place& place, float* to) {
        each_four(place, [&](const float* v, int at) {
            *reinterpret_cast<float4*>(to + at) = make_float4(v[0], v[1], v[2], v[3]);
        });
    }
    __device__ void leave(const Place& place, const Work& work, float* to) {
        each_pair(place, work,
                  [&](float a, float b, int at) { *reinterpret_cast<float2*>(to + at) = make_float2(a, b); });
    }
    // The state that this block starts from.
    __device__ void start(const Place& place, const Work& work, const Chain& chain) {
#pragma unroll
        for (float& v : value) v = 0;
        if (work.just_made && (work.starts || chain.segment > 0)) wait_for_previous_kernels();
        const float* between = work.between + chain.index * work.plan.segments * kHeldState;
        if (work.between && work.starts) return take(place, 0, between + chain.segment * kHeldState);
        if (work.initial)
            each_pair(place, work, [&](float& a, float& b, int at) {
                const float2 from = *reinterpret_cast<const float2*>(
                    work.initial + chain.index * work.key_dim * work.value_dim + at);
                a = from.x, b = from.y;
            });
        const auto decay = static_cast<float>(exp(-static_cast<double>(work.slopes[chain.value_head]) *
                                                  static_cast<double>(work.plan.segment_length)));
        for (int64_t segment = 0; segment < chain.segment; ++segment)
            take(place, decay, between + segment * kHeldState);
    }
    __device__ void finish(const Place& place, const Work& work, const Chain& chain) {
        if (work.final && chain.segment == work.plan.segments - 1)
            leave(place, work, work.final + chain.index * work.key_dim * work.value_dim);
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

// The square with the decay between its tokens: pairs in the wrong order are zero, row r is scaled by
// lambda^(r-m+1) ascending, lambda^(63-r-m) descending. The rest of the decay is in the operand of the
// columns, weighted as above, or, EXACT, still missing.
template <int STEP, bool EXACT>
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
        const int c = column + 8 * (i / 2),
                  after = STEP * (row + 8 * (i % 2) - c);  // how far the row is behind the column
        float low = square[2 * i] * scale[i % 2], high = square[2 * i + 1] * scale[i % 2];
        if (EXACT) {
            low *= weight_of<STEP>(powers, c, m);
            high *= weight_of<STEP>(powers, c + 1, m);
        }
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
            for (int i = 0; i < 4; ++i) {
                const float2 derivative = unpack_f16(d[i]);
                v[2 * i] *= derivative.x, v[2 * i + 1] *= derivative.y;
            }
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
                store_box(output.map, 64 * p, static_cast<int>(chain.key_head),
                          static_cast<int>(chain.map_begin) + first + warp_rows, chain.batch,
                          panel_address<kTile>(through, warp_rows, 8 * p));
    } else {
        // The copy engine would write the neighbouring document's rows, and takes no row before the first.
        __syncwarp();
        for (int i = place.lane; i < 4 * N; i += 32) {
            const int r = warp_rows + i / (N / 4), unit = 8 * panel + i % (N / 4);
            if (low <= r && r < high && unit * 8 < output.width)
                *reinterpret_cast<uint4*>(output.data + (chain.begin + first + r) * output.stride +
                                          chain.key_head * output.width + unit * 8) =
                    load_shared_unit(panel_address<kTile>(through, r, unit));
        }
    }
    __syncwarp();  // products need whole warps
}
// Before a tile that write_rows went through is given back.
__device__ inline void finish_rows(const Place& place) {
    if (place.lane == 0) wait_boxes_read();
}

}  // namespace levin::kernels::cuda::hopper
