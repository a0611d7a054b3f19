// Lightning attention on Hopper: wgmma on tiles of 64 tokens, one chain (sequence, head) or segment of it a
// block.
//
// A chain cut into segments (lightning_plan.h) needs the state at each one's start: state_kernel makes what
// each segment adds to it (attention needs all but the last), and the block of a segment sums what the
// segments before it add.
//
// A block is four warpgroups, in state_kernel five. The loader starts the copies of raw operands into the
// stages in shared memory (TMA); the activator, or two, applies silu to them where they lie; two consumers
// multiply. Each consumer owns 64 rows of the state KV or dKV [key_dim, value_dim], f32, in registers, and a
// bf16 copy of it in shared memory feeds both. With M, Lambda, W as in SPEC section 2 and E the weights of
// the update:
//   scan, o:   [(Q K^T) . M] V + Lambda Q KV       KV  = lambda^m KV + (E K)^T V        tokens ascending
//   scan, dq:  [(dO V^T) . M] K + Lambda dO KV^T   the same state
//   key_value: dv = [(K Q^T) . M] dO + W K dKV,    dKV = lambda^m dKV + (E Q)^T dO      tokens descending
//              dk = [(V dO^T) . M] Q + W V dKV^T
// With silu, an operand is activated and weighted by E in one rounding, and [..] takes it weighted too, M
// having the rest. Without, it is exact (EXACT below): [..] takes it as it is, and the state a weighted copy.
// Rows beyond the last token are zero in the tiles. Each product for the state starts from zero and is added
// by one FMA, so that long sums do not inherit the tensor core's truncation.
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/lightning_expand.h"
#include "kernels/cuda/sm90_bf16_lightning.h"
#include "kernels/cuda/sm90_lightning_tile.cuh"

#ifndef LEVIN_SM90A
#pragma nv_diag_suppress 177  // other architectures get empty kernels, which call nothing of this
#endif

namespace levin::kernels::cuda {

namespace {

using namespace hopper;

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

template <bool DQ, bool EXACT>
using ScanLayout = Layout<DQ || EXACT ? 2 : 3, DQ || EXACT ? 4 : 3, 2>;
using KeyValueLayout = Layout<2, 5, 2>;
using StateLayout = Layout<6, 2, 0, 2>;

// Tiles of a stage: x, k, v; EXACT: weighted k; else dq: derivatives of q. Consumer `group` makes columns 64
// group .. of the output, which goes out through the derivatives or, where there are none, through x.
template <bool DQ, bool EXACT>
__device__ inline void scan_tiles(const ScanWork& scan, const Block<ScanLayout<DQ, EXACT>>& block) {
    constexpr bool kDerivatives = DQ && !EXACT;
    const Place place;
    const uint32_t states = block.base + ScanLayout<DQ, EXACT>::kStates;
    const Powers& powers = block.powers;
    State state;
    state.start(place, scan.work, block.chain);
    state.copy(place, states);
    synchronize(1, kConsumers);
    int copy = 0;
    block.each_tile([&](const auto& turn, int64_t done) {
        const uint32_t x = block.stage(turn), k_tile = x + kTileBytes, v_tile = k_tile + kTileBytes,
                       fourth = v_tile + kTileBytes;
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
            mask<1, EXACT>(square, masked, powers, place, block.chain.rows(done));
        }
        wait_products<0>(out);
        scale_rows<1>(out, powers, place);
        begin_products();
        multiply_masked(out, masked, z, place.group);
        // Both warps that read these rows of x are done with them.
        if (!kDerivatives) synchronize(2 + place.warp, 64);
        wait_products<0>(out);
        begin_products();
        multiply_for_state(product, EXACT ? fourth : k_tile, v_tile, place.group);
        write_rows<1>(out, kDerivatives ? fourth : x, kDerivatives && scan.source_silu, scan.out, block.chain,
                      done, place.group, place);
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

template <bool DQ, bool EXACT>
__global__ void __launch_bounds__(ScanLayout<DQ, EXACT>::kThreads, 1)
    scan_kernel(const __grid_constant__ ScanWork scan) {
#ifdef LEVIN_SM90A
    using L = ScanLayout<DQ, EXACT>;
    const Block<L> block(scan.work, Chain(scan.work));
    if (role() == Role::load) {
        give_registers<L::kForLoader>();
        if constexpr (DQ && !EXACT)
            block.template load<1>(block.of_values(scan.x), block.of_keys(scan.k), block.of_values(scan.v),
                                   block.of_keys(scan.source));
        else
            block.template load<1>(DQ ? block.of_values(scan.x) : block.of_keys(scan.x),
                                   block.of_keys(scan.k), block.of_values(scan.v));
    } else if (role() == Role::activate) {
        give_registers<L::kForActivator>();
        using Crew = Activator<L::kActivators>;
        block.each_tile([&](const auto& turn, int64_t done) {
            const uint32_t x = block.stage(turn), k = x + kTileBytes, v = k + kTileBytes,
                           fourth = v + kTileBytes;
            block.pipeline.wait_loaded(turn);
            if (scan.x_silu) Crew::activate(x);
            Crew::template weigh<1>(k, EXACT ? fourth : k, scan.k_silu, block.powers, block.chain.rows(done));
            if (scan.v_silu) Crew::activate(v);
            if (DQ && scan.source_silu) Crew::differentiate(fourth);
            block.pipeline.publish(turn);
        });
    } else {
        take_registers<L::kForConsumer>();
        scan_tiles<DQ, EXACT>(scan, block);
    }
    wait_for_previous_kernels();
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
            chain.value_head * width + column);
        out[2 * i] *= silu_derivative(low_half(raw));
        out[2 * i + 1] *= silu_derivative(high_half(raw));
    }
    __syncwarp();
}

// Tiles of a stage: q, k, v, d_o, derivatives of k; EXACT: weighted q. Makes dv, or DK: dk. dv goes out
// through the tile of k, which only its maker reads, dk through the derivatives or likewise through v.
template <bool DK, bool EXACT>
__device__ inline void make_gradient(const KeyValueWork& args, const Block<KeyValueLayout>& block,
                                     const Place& place) {
    const uint32_t states = block.base + KeyValueLayout::kStates;
    const Powers& powers = block.powers;
    State state;
    state.start(place, args.work, block.chain);
    state.copy(place, states);
    synchronize(1, kConsumers);
    int copy = 0;
    block.each_tile([&](const auto& turn, int64_t done) {
        const uint32_t q = block.stage(turn), k_tile = q + kTileBytes, v = k_tile + kTileBytes,
                       d_o = v + kTileBytes, fifth = d_o + kTileBytes, old = states + copy * kStateBytes;
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
            mask<-1, EXACT>(square, masked, powers, place, block.chain.rows(done));
        }
        wait_products<0>(out);
        scale_rows<-1>(out, powers, place);
        begin_products();
        multiply_masked(out, masked, DK ? q : d_o, 0);
        wait_products<0>(out);
        if (!DK || EXACT) synchronize(DK ? 3 : 2, kGroup);  // all are done with k, or v
        if (!DK && args.raw_v) multiply_by_v_derivative(out, args, block.chain, done, place);
        const uint32_t through = !DK ? k_tile : EXACT ? v : fifth;
        write_rows<-1>(out, through, DK && !EXACT && args.qk_silu, DK ? args.dk : args.dv, block.chain, done,
                       0, place);
        float product[kWidth / 2];
        begin_products();
        multiply_for_state(product, EXACT ? fifth : q, d_o, place.group);
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
template <bool EXACT>
__global__ void __launch_bounds__(KeyValueLayout::kThreads, 1)
    key_value_kernel(const __grid_constant__ KeyValueWork args) {
#ifdef LEVIN_SM90A
    const Block<KeyValueLayout> block(args.work, Chain(args.work));
    if (role() == Role::load) {
        give_registers<KeyValueLayout::kForLoader>();
        block.load<-1>(block.of_keys(args.q), block.of_keys(args.k), block.of_values(args.v),
                       block.of_values(args.d_o));
    } else if (role() == Role::activate) {
        give_registers<KeyValueLayout::kForActivator>();
        using Crew = Activator<KeyValueLayout::kActivators>;
        block.each_tile([&](const auto& turn, int64_t done) {
            const uint32_t q = block.stage(turn), k = q + kTileBytes, v = k + kTileBytes,
                           fifth = v + 2 * kTileBytes;
            block.pipeline.wait_loaded(turn);
            Crew::template weigh<-1>(q, EXACT ? fifth : q, args.qk_silu, block.powers,
                                     block.chain.rows(done));
            if (!EXACT && args.qk_silu) Crew::activate_and_differentiate(k, fifth);
            if (args.raw_v) Crew::activate(v);
            block.pipeline.publish(turn);
        });
    } else {
        take_registers<KeyValueLayout::kForConsumer>();
        const Place place;
        if (place.group == 0)
            make_gradient<false, EXACT>(args, block, place);
        else
            make_gradient<true, EXACT>(args, block, place);
    }
    wait_for_previous_kernels();
#endif
}

// Tokens so far from the end of [from, to) that they weigh less than exp(-44) = 2^-63 beside the last one are
// not read: f32 keeps 24 bits of the sum.
__device__ inline Chain without_faded(const Work& work) {
    Chain chain(work);
    const float reach = 44.0f / work.slopes[chain.value_head] + kTile;
    if (reach < static_cast<float>(chain.to - chain.from))
        chain.from += (chain.to - chain.from - static_cast<int64_t>(reach)) / kTile * kTile;
    return chain;
}

// What each segment adds to the state. STEP 1: KV, -1: dKV.
template <int STEP>
__global__ void __launch_bounds__(StateLayout::kThreads, 1)
    state_kernel(const __grid_constant__ StateWork args) {
#ifdef LEVIN_SM90A
    const Block<StateLayout> block(args.work, without_faded(args.work));
    if (role() == Role::load) {
        give_registers<StateLayout::kForLoader>();
        block.load<STEP>(block.of_keys(args.a), block.of_values(args.b));
    } else if (role() == Role::activate) {
        give_registers<StateLayout::kForActivator>();
        using Crew = Activator<StateLayout::kActivators>;
        block.each_tile([&](const auto& turn, int64_t done) {
            const uint32_t a = block.stage(turn);
            block.pipeline.wait_loaded(turn);
            Crew::template weigh<STEP>(a, a, args.a_silu, block.powers, block.chain.rows(done));
            if (args.b_silu) Crew::activate(a + kTileBytes);
            block.pipeline.publish(turn);
        });
    } else {
        take_registers<StateLayout::kForConsumer>();
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
        const Chain& chain = block.chain;
        if (args.work.between)
            state.hold(place, args.work.between +
                                  (chain.index * args.work.plan.segments + chain.segment) * kHeldState);
        else
            state.finish(place, args.work, chain);
    }
    wait_for_previous_kernels();
#endif
}

// The kernels of one forward or backward pass, in order. Each but the first starts while the one before it
// still runs, and all but the first segments wait for states just made (State::start). As each waits for its
// predecessors before it ends, whatever follows sees all of them done.
class Launches {
public:
    explicit Launches(cudaStream_t stream) : stream_(stream) {}
    template <class L, class Args>
    void add(void (*kernel)(Args), int64_t blocks, const Args& args) {
        launch_dependent(stream_,
                         {.grid = dim3(static_cast<unsigned>(blocks)),
                          .threads = L::kThreads,
                          .shared = L::kBytes + 1024,
                          .early = !first_},
                         kernel, args);
        first_ = false;
    }
    // After a kernel that does not let the next one start.
    void restart() { first_ = true; }

private:
    cudaStream_t stream_;
    bool first_ = true;
};

// The heads as the kernels take them: wide keys in two parts.
struct Heads {
    int parts;
    int64_t key_heads, key_dim;
    explicit Heads(const LightningShape& shape)
        : parts(shape.key_dim > kWidth ? 2 : 1),
          key_heads(shape.heads * parts),
          key_dim(shape.key_dim / parts) {}
};

Work work_of(const Stream& stream, const LightningShape& shape) {
    const Heads heads(shape);
    Work work{};
    work.slopes = shape.slopes;
    work.chains = shape.sequences() * heads.key_heads;
    work.key_heads = heads.key_heads;
    work.length = shape.length;
    work.parts = heads.parts;
    work.plan = shape.cu_seqlens
                    ? SegmentPlan{1, shape.length}
                    : plan_segments(work.chains, shape.length, multiprocessors(stream.device.index));
    work.cu_seqlens = shape.cu_seqlens;
    work.key_dim = static_cast<int>(heads.key_dim);
    work.value_dim = static_cast<int>(shape.value_dim);
    // More are summed once for all.
    work.starts = work.plan.segments > 8;
    return work;
}

// Floats of the states between the segments.
int64_t between_size(const Work& work) {
    return work.plan.segments > 1 ? work.chains * work.plan.segments * kHeldState : 0;
}

struct Mapped {
    CUtensorMap map;
    bool silu;
};
Mapped keys_of(const LightningShape& shape, const void* data, int64_t stride) {
    const Heads heads(shape);
    return {panel_map(data, stride, shape.batch, shape.length, heads.key_heads, heads.key_dim),
            shape.qk_activation == Activation::silu};
}
Mapped values_of(const LightningShape& shape, const void* data, int64_t stride, Activation activation) {
    return {panel_map(data, stride, shape.batch, shape.length, shape.heads, shape.value_dim),
            activation == Activation::silu};
}
Output output_of(const LightningShape& shape, void* data, int64_t stride, int64_t width) {
    return {panel_map(data, stride, shape.batch, shape.length, Heads(shape).key_heads, width, 16),
            static_cast<Bf16*>(data), stride, static_cast<int>(width)};
}

// An output of values: of wide keys first the contributions of their parts, in scratch memory, and then their
// sum.
class SummedOutput {
public:
    SummedOutput(cudaStream_t stream, const LightningShape& shape, void* out, int64_t stride)
        : stream_(stream),
          shape_(shape),
          out_(out),
          out_stride_(stride),
          parts_(stream, Heads(shape).parts > 1 ? tokens() * row() * sizeof(Bf16) : 0) {}
    Output output() const {
        if (Heads(shape_).parts == 1) return output_of(shape_, out_, out_stride_, shape_.value_dim);
        return output_of(shape_, parts_.as<>(), row(), shape_.value_dim);
    }
    void sum() const {
        if (Heads(shape_).parts > 1)
            add_halves_of_heads(stream_, tokens(), shape_.heads, shape_.value_dim, parts_.as<Bf16>(),
                                static_cast<Bf16*>(out_), out_stride_);
    }

private:
    int64_t tokens() const { return shape_.batch * shape_.length; }
    int64_t row() const { return Heads(shape_).key_heads * shape_.value_dim; }
    cudaStream_t stream_;
    LightningShape shape_;
    void* out_;
    int64_t out_stride_;
    Scratch parts_;
};

// From what each segment adds to the states that they start from, where these are not summed block by block.
void add_up_starts(Launches& launches, cudaStream_t stream, const Work& work) {
    if (!work.starts) return;
    launch_states_between(stream, work.chains,
                          {.initial = work.initial,
                           .between = work.between,
                           .held = true,
                           .slopes = work.slopes,
                           .heads = work.key_heads,
                           .parts = work.parts,
                           .segments = work.plan.segments,
                           .segment_length = work.plan.segment_length,
                           .rows = work.key_dim,
                           .columns = work.value_dim,
                           .initial_row = work.value_dim,
                           .initial_column = 1});
    launches.restart();
}

// Fills work.between, walking forward (STEP 1: KV) or backward (dKV).
template <int STEP>
void states_between(Launches& launches, cudaStream_t stream, const Work& work, const Mapped& a,
                    const Mapped& b) {
    launches.add<StateLayout>(state_kernel<STEP>, work.chains * (work.plan.segments - 1),
                              StateWork{a.map, b.map, work, a.silu, b.silu});
    add_up_starts(launches, stream, work);
}

template <bool DQ>
void add_scan(Launches& launches, const ScanWork& scan) {
    const int64_t blocks = scan.work.chains * scan.work.plan.segments;
    if (scan.k_silu)
        launches.add<ScanLayout<DQ, false>>(scan_kernel<DQ, false>, blocks, scan);
    else
        launches.add<ScanLayout<DQ, true>>(scan_kernel<DQ, true>, blocks, scan);
}

}  // namespace

int64_t sm90_states_to_keep(const Stream& stream, const LightningShape& shape) {
    return between_size(work_of(stream, shape));
}

void sm90_lightning_forward(const Stream& stream, const LightningForward& args) {
    const LightningShape& shape = args.shape;
    const cudaStream_t s = use(stream);
    Work work = work_of(stream, shape);
    if (work.chains <= 0 || shape.batch * shape.length == 0) return;
    const int64_t size = between_size(work);
    if (size > 0 && args.final_state && args.final_state == args.initial_state)
        fail_arguments("lightning attention", "final_state must not be initial_state at this length",
                       shape.length);
    const Scratch between(s, args.kept_states ? 0 : size * sizeof(float));
    const Mapped q = keys_of(shape, args.q, args.q_stride), k = keys_of(shape, args.k, args.k_stride),
                 v = values_of(shape, args.v, args.v_stride, shape.v_activation);
    const SummedOutput o(s, shape, args.o, shape.heads * shape.value_dim);
    Launches launches(s);
    work.initial = static_cast<const float*>(args.initial_state);
    work.final = static_cast<float*>(args.final_state);
    if (size > 0) {
        work.between = args.kept_states ? args.kept_states : between.as<float>();
        if (shape.states_first && args.kept_states) {
            add_up_starts(launches, s, work);
        } else {
            states_between<1>(launches, s, work, k, v);
            work.just_made = true;
        }
    }
    add_scan<false>(launches, {q.map, k.map, v.map, q.map, o.output(), work, q.silu, k.silu, v.silu, false});
    o.sum();
}

void sm90_lightning_state(const Stream& stream, const LightningState& args) {
    const LightningShape& shape = args.shape;
    const cudaStream_t s = use(stream);
    Work work = work_of(stream, shape);
    const int64_t size = between_size(work);
    const bool nobody_wants_it = !args.state && (size == 0 || !args.kept_states);
    if (work.chains <= 0 || shape.batch * shape.length == 0 || nobody_wants_it) return;
    const Scratch between(s, args.kept_states ? 0 : size * sizeof(float));
    auto* state = static_cast<float*>(args.state);
    if (size == 0)
        work.final = state;
    else
        work.between = args.kept_states ? args.kept_states : between.as<float>();
    const Mapped a = keys_of(shape, args.keys, args.key_stride),
                 b = values_of(shape, args.values, args.value_stride,
                               args.mirrored ? Activation::none : shape.v_activation);
    Launches(s).add<StateLayout>(args.mirrored ? state_kernel<-1> : state_kernel<1>,
                                 work.chains * work.plan.segments,
                                 StateWork{a.map, b.map, work, a.silu, b.silu});
    if (size > 0 && state)
        launch_states_total(s, work.chains,
                            {.between = work.between,
                             .total = state,
                             .slopes = work.slopes,
                             .heads = work.key_heads,
                             .parts = work.parts,
                             .segments = work.plan.segments,
                             .segment_length = work.plan.segment_length,
                             .length = work.length,
                             .rows = work.key_dim,
                             .columns = work.value_dim});
}

void sm90_lightning_backward(const Stream& stream, const LightningBackward& args) {
    const LightningShape& shape = args.shape;
    const cudaStream_t s = use(stream);
    const Work work = work_of(stream, shape);
    if (work.chains <= 0 || shape.batch * shape.length == 0) {
        if (args.await_d_final) args.await_d_final();
        return;
    }
    const int64_t size = between_size(work);
    float* gradients = shape.states_first ? args.kept_gradients : nullptr;
    const Scratch between(s, args.kept_states ? 0 : size * sizeof(float)),
        between_backward(s, gradients ? 0 : size * sizeof(float));
    const Mapped q = keys_of(shape, args.q, args.q_stride), k = keys_of(shape, args.k, args.k_stride),
                 v = values_of(shape, args.v, args.v_stride, shape.v_activation),
                 d_o = values_of(shape, args.d_o, shape.heads * shape.value_dim, Activation::none);
    const SummedOutput dv(s, shape, args.dv, args.dv_stride);
    Launches launches(s);

    Work forward = work, backward = work;
    forward.initial = static_cast<const float*>(args.initial_state);
    backward.initial = static_cast<const float*>(args.d_final_state);
    backward.final = static_cast<float*>(args.d_initial_state);
    if (size > 0) {
        // kept states are only read
        forward.between = args.kept_states ? const_cast<float*>(args.kept_states) : between.as<float>();
        backward.between = gradients ? gradients : between_backward.as<float>();
        if (!args.kept_states) states_between<1>(launches, s, forward, k, v);
        forward.just_made = !args.kept_states;
        backward.just_made = !gradients;
    }
    const auto queries = [&] {
        add_scan<true>(launches,
                       {d_o.map, k.map, v.map, q.map, output_of(shape, args.dq, args.dq_stride, work.key_dim),
                        forward, false, k.silu, v.silu, q.silu});
    };
    const auto keys_and_values = [&] {
        if (size > 0 && gradients) add_up_starts(launches, s, backward);
        if (size > 0 && !gradients) states_between<-1>(launches, s, backward, q, d_o);
        launches.add<KeyValueLayout>(
            q.silu ? key_value_kernel<false> : key_value_kernel<true>, work.chains * work.plan.segments,
            KeyValueWork{q.map, k.map, v.map, d_o.map,
                         output_of(shape, args.dk, args.dk_stride, work.key_dim), dv.output(), backward,
                         q.silu, v.silu ? static_cast<const Bf16*>(args.v) : nullptr, args.v_stride});
    };
    if (args.await_d_final) {
        queries();
        args.await_d_final();
        launches.restart();
        keys_and_values();
    } else {
        // dq last: where forward kept its states it waits for nobody, and fills the places that the other
        // leaves.
        keys_and_values();
        queries();
    }
    dv.sum();
}

}  // namespace levin::kernels::cuda
