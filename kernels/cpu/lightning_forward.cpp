// Forward pass of lightning attention: tiles ascending, the state in the thread's scratch.
#include "kernels/backends.h"
#include "kernels/cpu/lightning_step.h"

namespace levin::kernels::cpu {
namespace lightning {

std::vector<Chain> make_chains(const LightningShape& shape) {
    const int64_t tokens = shape.batch * shape.length;
    LEVIN_CHECK(
        shape.batch >= 0 && shape.length >= 0 && shape.heads > 0 && shape.key_dim > 0 && shape.value_dim > 0,
        "lightning_attention", "shape batch {} length {} heads {} key_dim {} value_dim {}, expected positive",
        shape.batch, shape.length, shape.heads, shape.key_dim, shape.value_dim);
    LEVIN_CHECK(shape.slopes, "lightning_attention", "slopes are nullptr, expected one per head");
    std::vector<Chain> chains;
    chains.reserve(static_cast<size_t>(shape.sequences() * shape.heads));
    const auto add = [&](int64_t sequence, int64_t begin, int64_t length, int64_t position) {
        for (int64_t head = 0; head < shape.heads; ++head)
            chains.push_back({sequence, head, begin, length, position});
    };
    if (!shape.cu_seqlens) {
        for (int64_t b = 0; b < shape.batch; ++b)
            add(b, b * shape.length, shape.length, shape.first_position);
        return chains;
    }
    const int32_t* borders = shape.cu_seqlens;
    LEVIN_CHECK(
        shape.batch == 1 && shape.documents > 0 && borders[0] == 0 && borders[shape.documents] == tokens,
        "lightning_attention", "batch {}, {} documents, borders {} .. {}: expected batch 1, borders 0 .. {}",
        shape.batch, shape.documents, borders[0], borders[std::max<int64_t>(shape.documents, 0)], tokens);
    for (int64_t d = 0; d < shape.documents; ++d) {
        LEVIN_CHECK(borders[d] <= borders[d + 1], "lightning_attention",
                    "document {} runs from token {} to {}, expected ascending borders", d, borders[d],
                    borders[d + 1]);
        add(d, borders[d], borders[d + 1] - borders[d], shape.first_position + borders[d]);
    }
    std::stable_sort(chains.begin(), chains.end(),
                     [](const Chain& a, const Chain& b) { return a.length > b.length; });
    return chains;
}

namespace {

// One token: each element of the state is touched once, no tile is built.
template <class T>
void forward_token(const LightningForward& args, const Chain& chain, Columns values, arithmetic_t<T> decay) {
    using R = arithmetic_t<T>;
    const LightningShape& shape = args.shape;
    Scratch& scratch = Scratch::fresh();
    Angles<R> angles(scratch, shape, chain.head, {0, shape.key_dim});
    const int64_t width = angles.width(), n = values.count;
    R *q = scratch.take<R>(width), *k = scratch.take<R>(width), *v = scratch.take<R>(n),
      *o = scratch.take<R>(n);
    angles.seek(chain.position, 1);
    load_keys(shape.qk_activation, 1, shape.key_dim, angles,
              rows_of<T>(args.q, chain.begin, args.q_stride, chain.head, shape.key_dim), 0, q, 0);
    load_keys(shape.qk_activation, 1, shape.key_dim, angles,
              rows_of<T>(args.k, chain.begin, args.k_stride, chain.head, shape.key_dim), 0, k, 0);
    load_rows(shape.v_activation, 1, shape.value_dim, values,
              rows_of<T>(args.v, chain.begin, args.v_stride, chain.head, shape.value_dim), 0, v, 0);

    const R* in =
        args.initial_state ? state_of(shape, chain, static_cast<const R*>(args.initial_state)) : nullptr;
    R* out = args.final_state ? state_of(shape, chain, static_cast<R*>(args.final_state)) : nullptr;
    std::fill(o, o + n, R(0));
    for (int64_t c = 0; c < width; ++c) {
        const int64_t row = c * shape.value_dim + values.begin;
        const R key = k[c], query = q[c];
#pragma omp simd  // in may be out: the same element
        for (int64_t e = 0; e < n; ++e) {
            const R updated = (in ? decay * in[row + e] : R(0)) + key * v[e];
            if (out) out[row + e] = updated;
            o[e] += query * updated;
        }
    }
    store_rows(
        1, n, o, 0,
        static_cast<T*>(args.o) + (chain.begin * shape.heads + chain.head) * shape.value_dim + values.begin,
        0);
}

template <class T>
void forward_chain(const LightningForward& args, const Chain& chain, Columns values,
                   const typename Powers<arithmetic_t<T>>::Head& powers) {
    using R = arithmetic_t<T>;
    const LightningShape& shape = args.shape;
    Scratch& scratch = Scratch::fresh();
    Angles<R> angles(scratch, shape, chain.head, {0, shape.key_dim});
    AscendingTiles<R> tiles(scratch, angles.width(), values.count);
    const int64_t o_stride = shape.heads * shape.value_dim;
    bool old = args.initial_state != nullptr;
    if (old) {
        const R* in = state_of(shape, chain, static_cast<const R*>(args.initial_state)) + values.begin;
        for (int64_t c = 0; c < tiles.width; ++c)
            std::copy_n(in + c * shape.value_dim, tiles.n, tiles.state + c * tiles.n_stride);
    }
    for (int64_t done = 0; done < chain.length; done += kTile) {
        const int64_t m = std::min(kTile, chain.length - done), token = chain.begin + done;
        angles.seek(chain.position + done, m);
        load_keys(shape.qk_activation, m, shape.key_dim, angles,
                  rows_of<T>(args.q, token, args.q_stride, chain.head, shape.key_dim), args.q_stride,
                  tiles.left, tiles.width_stride);
        load_keys(shape.qk_activation, m, shape.key_dim, angles,
                  rows_of<T>(args.k, token, args.k_stride, chain.head, shape.key_dim), args.k_stride,
                  tiles.right, tiles.width_stride);
        load_rows(shape.v_activation, m, shape.value_dim, values,
                  rows_of<T>(args.v, token, args.v_stride, chain.head, shape.value_dim), args.v_stride,
                  tiles.values, tiles.n_stride);
        tiles.ahead.clear();
        fetch_rows<T>(tiles.ahead, m, args.o, token, o_stride, chain.head, shape.value_dim);
        if (const int64_t next = std::min(kTile, chain.length - done - m); next > 0) {
            fetch_rows<T>(tiles.ahead, next, args.q, token + m, args.q_stride, chain.head, shape.key_dim);
            fetch_rows<T>(tiles.ahead, next, args.k, token + m, args.k_stride, chain.head, shape.key_dim);
            fetch_rows<T>(tiles.ahead, next, args.v, token + m, args.v_stride, chain.head, shape.value_dim);
        }
        tiles.ascend(m, powers, old, args.final_state || done + m < chain.length);
        old = true;
        store_rows(m, tiles.n, tiles.out, tiles.n_stride,
                   rows_of<T>(args.o, token, o_stride, chain.head, shape.value_dim) + values.begin, o_stride);
    }
    if (args.final_state) {
        R* out = state_of(shape, chain, static_cast<R*>(args.final_state)) + values.begin;
        for (int64_t c = 0; c < tiles.width; ++c) {
            if (old)
                std::copy_n(tiles.state + c * tiles.n_stride, tiles.n, out + c * shape.value_dim);
            else  // an empty document that starts from zero
                std::fill_n(out + c * shape.value_dim, tiles.n, R(0));
        }
    }
}

// Into how many column parts of the values each chain is cut: few chains on many threads. Every part repeats
// the products of queries with keys.
int64_t value_parts(const LightningShape& shape, int64_t chains, int64_t vectors) {
    const double repeated = kTile, divided = kTile + 2.0 * shape.value_dim;
    int64_t best = 1;
    double least = 0;
    for (int64_t parts = 1; parts <= vectors; ++parts) {
        const int64_t rounds = (chains * parts + omp_get_max_threads() - 1) / omp_get_max_threads();
        const double cost = rounds * (repeated + divided / parts);
        if (parts == 1 || cost < 0.98 * least) best = parts, least = cost;
    }
    return best;
}

}  // namespace
}  // namespace lightning

void lightning_forward(const LightningForward& args) {
    using namespace lightning;
    const LightningShape& shape = args.shape;
    const std::vector<Chain> chains = make_chains(shape);
    if (chains.empty()) return;
    const auto count = static_cast<int64_t>(chains.size());
    const double work = static_cast<double>(shape.batch * shape.length * shape.heads) * shape.key_width() *
                        (4.0 * shape.value_dim + 4.0 * std::min(kTile, shape.length));
    with_floating(shape.dtype, [&](auto tag) {
        using T = typename decltype(tag)::type;
        using R = arithmetic_t<T>;
        const int64_t parts = value_parts(shape, count, round_up<R>(shape.value_dim) / kLanes<R>);
        const Powers<R> powers(shape, chains.front().length);
        for_each_task(count * parts, work, [&](int64_t task) {
            const Chain& chain = chains[static_cast<size_t>(task / parts)];
            const Columns values = part_of<R>(shape.value_dim, task % parts, parts);
            if (chain.length == 1)
                forward_token<T>(args, chain, values, powers.of(chain.head).power(1));
            else
                forward_chain<T>(args, chain, values, powers.of(chain.head));
        });
    });
}

}  // namespace levin::kernels::cpu
