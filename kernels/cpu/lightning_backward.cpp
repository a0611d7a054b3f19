// Backward pass of lightning attention: dq with tiles ascending and the state made again, dk and dv with
// tiles descending and the gradient of the state. The two passes of a chain are independent tasks; nothing is
// added by two tasks into one place, so the result does not depend on the threads.
#include "kernels/backends.h"
#include "kernels/cpu/lightning_step.h"

namespace levin::kernels::cpu {
namespace lightning {
namespace {

// Gradient of raw q or k from that of the tile: out LRPE, then the activation's derivative. dtheta [columns]
// (may be nullptr) += sum_r (time + r) a (d_sin cos - d_cos sin), a the activated value.
template <class T>
void store_key_gradient(Activation activation, int64_t rows, int64_t group,
                        const Angles<arithmetic_t<T>>& angles, const T* x, int64_t x_stride,
                        const arithmetic_t<T>* tile, int64_t stride, T* dx, int64_t dx_stride, double time,
                        double* dtheta) {
    using R = arithmetic_t<T>;
    const auto [begin, count] = angles.columns();
    with_activation(activation, [&](auto tag) {
        constexpr Activation A = tag;
        for (int64_t r = 0; r < rows; ++r) {
            const T* row = x + r * x_stride;
            const R shift = exp_shift<A>(row, group);
            const R* d = tile + r * stride;
            T* __restrict out = dx + r * dx_stride + begin;
            row += begin;
            if (!angles.any()) {
                for (int64_t c = 0; c < count; ++c)
                    out[c] = narrow<T>(d[c] * activation_derivative<A>(load(row[c]) - shift));
                continue;
            }
            const R *co = angles.cos(r), *si = angles.sin(r), *d_sin = d + count;
            for (int64_t c = 0; c < count; ++c) {
                const auto a = activation_both<A>(load(row[c]) - shift);
                out[c] = narrow<T>((d[c] * co[c] + d_sin[c] * si[c]) * a.derivative);
                if (dtheta) dtheta[c] += (time + r) * (a.value * (d_sin[c] * co[c] - d[c] * si[c]));
            }
        }
    });
}

template <class T>
void store_value_gradient(Activation activation, int64_t rows, int64_t columns, const T* x, int64_t x_stride,
                          const arithmetic_t<T>* tile, int64_t stride, T* dx, int64_t dx_stride) {
    with_activation(activation, [&](auto tag) {
        constexpr Activation A = tag;
        for (int64_t r = 0; r < rows; ++r) {
            const T* row = x + r * x_stride;
            const auto shift = exp_shift<A>(row, columns);
            T* __restrict out = dx + r * dx_stride;
            for (int64_t c = 0; c < columns; ++c)
                out[c] = narrow<T>(tile[r * stride + c] * activation_derivative<A>(load(row[c]) - shift));
        }
    });
}

// tile [value_dim, keys] = state[keys, value_dim] transposed, keys the rows that a range of columns of q
// stands for.
template <class R>
void load_state_turned(const LightningShape& shape, Columns keys, int64_t width, const R* state, R* tile,
                       int64_t stride) {
    for (int64_t row = 0; row < width; ++row) {
        const R* from = state + state_row(shape, keys, row) * shape.value_dim;
        for (int64_t e = 0; e < shape.value_dim; ++e) tile[e * stride + row] = from[e];
    }
}

// Time of a chain's first token in dtheta. Without states from and to the outside the result does not depend
// on where time starts, as only differences of positions matter; then starting at zero keeps rounding errors
// from being multiplied by large positions.
double first_time(const LightningBackward& args, const Chain& chain) {
    return args.initial_state || args.d_final_state ? static_cast<double>(chain.position) : 0.0;
}

// dq of a range of columns.
template <class T>
void query_gradient(const LightningBackward& args, const Chain& chain, Columns keys,
                    const typename Powers<arithmetic_t<T>>::Head& powers, double* dtheta) {
    using R = arithmetic_t<T>;
    const LightningShape& shape = args.shape;
    Scratch& scratch = Scratch::fresh();
    Angles<R> angles(scratch, shape, chain.head, keys);
    AscendingTiles<R> tiles(scratch, shape.value_dim, angles.width());
    bool old = args.initial_state != nullptr;
    if (old)
        load_state_turned(shape, keys, tiles.n,
                          state_of(shape, chain, static_cast<const R*>(args.initial_state)), tiles.state,
                          tiles.n_stride);
    const int64_t d_o_stride = shape.heads * shape.value_dim;
    for (int64_t done = 0; done < chain.length; done += kTile) {
        const int64_t m = std::min(kTile, chain.length - done), token = chain.begin + done;
        angles.seek(chain.position + done, m);
        load_rows(Activation::none, m, shape.value_dim, {0, shape.value_dim},
                  rows_of<T>(args.d_o, token, d_o_stride, chain.head, shape.value_dim), d_o_stride,
                  tiles.left, tiles.width_stride);
        load_rows(shape.v_activation, m, shape.value_dim, {0, shape.value_dim},
                  rows_of<T>(args.v, token, args.v_stride, chain.head, shape.value_dim), args.v_stride,
                  tiles.right, tiles.width_stride);
        load_keys(shape.qk_activation, m, shape.key_dim, angles,
                  rows_of<T>(args.k, token, args.k_stride, chain.head, shape.key_dim), args.k_stride,
                  tiles.values, tiles.n_stride);
        tiles.ahead.clear();
        fetch_rows<T>(tiles.ahead, m, args.q, token, args.q_stride, chain.head, shape.key_dim);
        fetch_rows<T>(tiles.ahead, m, args.dq, token, args.dq_stride, chain.head, shape.key_dim);
        if (const int64_t next = std::min(kTile, chain.length - done - m); next > 0) {
            fetch_rows<T>(tiles.ahead, next, args.d_o, token + m, d_o_stride, chain.head, shape.value_dim);
            fetch_rows<T>(tiles.ahead, next, args.v, token + m, args.v_stride, chain.head, shape.value_dim);
            fetch_rows<T>(tiles.ahead, next, args.k, token + m, args.k_stride, chain.head, shape.key_dim);
        }
        tiles.ascend(m, powers, old, done + m < chain.length);
        old = true;
        store_key_gradient(shape.qk_activation, m, shape.key_dim, angles,
                           rows_of<T>(args.q, token, args.q_stride, chain.head, shape.key_dim), args.q_stride,
                           tiles.out, tiles.n_stride,
                           rows_of<T>(args.dq, token, args.dq_stride, chain.head, shape.key_dim),
                           args.dq_stride, first_time(args, chain) + static_cast<double>(done), dtheta);
    }
}

// dk, dv and the gradient of the initial state.
template <class T>
void key_value_gradient(const LightningBackward& args, const Chain& chain,
                        const typename Powers<arithmetic_t<T>>::Head& powers, double* dtheta) {
    using R = arithmetic_t<T>;
    const LightningShape& shape = args.shape;
    const Columns keys{0, shape.key_dim}, values{0, shape.value_dim};
    Scratch& scratch = Scratch::fresh();
    Angles<R> angles(scratch, shape, chain.head, keys);
    DescendingTiles<R> tiles(scratch, angles.width(), shape.value_dim);
    bool old = args.d_final_state != nullptr;
    if (old)
        load_state_turned(shape, keys, tiles.width,
                          state_of(shape, chain, static_cast<const R*>(args.d_final_state)), tiles.state,
                          tiles.width_stride);
    const int64_t d_o_stride = shape.heads * shape.value_dim;
    for (int64_t done = (chain.length - 1) / kTile * kTile; done >= 0 && chain.length > 0; done -= kTile) {
        const int64_t m = std::min(kTile, chain.length - done), token = chain.begin + done;
        const T* k = rows_of<T>(args.k, token, args.k_stride, chain.head, shape.key_dim);
        const T* v = rows_of<T>(args.v, token, args.v_stride, chain.head, shape.value_dim);
        angles.seek(chain.position + done, m, -1);
        load_keys(shape.qk_activation, m, shape.key_dim, angles,
                  rows_of<T>(args.q, token, args.q_stride, chain.head, shape.key_dim), args.q_stride, tiles.q,
                  tiles.width_stride);
        load_keys(shape.qk_activation, m, shape.key_dim, angles, k, args.k_stride, tiles.k,
                  tiles.width_stride);
        load_rows(shape.v_activation, m, shape.value_dim, values, v, args.v_stride, tiles.v, tiles.n_stride);
        load_rows(Activation::none, m, shape.value_dim, values,
                  rows_of<T>(args.d_o, token, d_o_stride, chain.head, shape.value_dim), d_o_stride, tiles.d_o,
                  tiles.n_stride);
        tiles.ahead.clear();
        fetch_rows<T>(tiles.ahead, m, args.dk, token, args.dk_stride, chain.head, shape.key_dim);
        fetch_rows<T>(tiles.ahead, m, args.dv, token, args.dv_stride, chain.head, shape.value_dim);
        if (done > 0) {
            fetch_rows<T>(tiles.ahead, kTile, args.q, token - kTile, args.q_stride, chain.head,
                          shape.key_dim);
            fetch_rows<T>(tiles.ahead, kTile, args.k, token - kTile, args.k_stride, chain.head,
                          shape.key_dim);
            fetch_rows<T>(tiles.ahead, kTile, args.v, token - kTile, args.v_stride, chain.head,
                          shape.value_dim);
            fetch_rows<T>(tiles.ahead, kTile, args.d_o, token - kTile, d_o_stride, chain.head,
                          shape.value_dim);
        }
        tiles.descend(m, powers, old, args.d_initial_state || done > 0);
        old = true;
        store_key_gradient(shape.qk_activation, m, shape.key_dim, angles, k, args.k_stride, tiles.dk,
                           tiles.width_stride,
                           rows_of<T>(args.dk, token, args.dk_stride, chain.head, shape.key_dim),
                           args.dk_stride, first_time(args, chain) + static_cast<double>(done), dtheta);
        store_value_gradient(
            shape.v_activation, m, shape.value_dim, v, args.v_stride, tiles.v, tiles.n_stride,
            rows_of<T>(args.dv, token, args.dv_stride, chain.head, shape.value_dim), args.dv_stride);
    }
    if (!args.d_initial_state) return;
    R* out = state_of(shape, chain, static_cast<R*>(args.d_initial_state));
    for (int64_t c = 0; c < tiles.width; ++c)
        for (int64_t e = 0; e < shape.value_dim; ++e)
            out[c * shape.value_dim + e] = old ? tiles.state[e * tiles.width_stride + c] : R(0);
}

}  // namespace
}  // namespace lightning

void lightning_backward(const LightningBackward& args) {
    using namespace lightning;
    const LightningShape& shape = args.shape;
    const std::vector<Chain> chains = make_chains(shape);
    const auto count = static_cast<int64_t>(chains.size());
    const double work = static_cast<double>(shape.batch * shape.length * shape.heads) * shape.key_width() *
                        (10.0 * shape.value_dim + 10.0 * std::min(kTile, shape.length));
    with_floating(shape.dtype, [&](auto tag) {
        using T = typename decltype(tag)::type;
        using R = arithmetic_t<T>;
        const Powers<R> powers(shape, chains.empty() ? 0 : chains.front().length);
        // Parts of dtheta: [query or key, sequence, head, key_dim].
        const int64_t heads_width = shape.heads * shape.key_dim;
        std::vector<double> parts(shape.theta ? static_cast<size_t>(2 * shape.sequences() * heads_width) : 0,
                                  0.0);
        const auto part = [&](int64_t which, const Chain& chain, int64_t column) {
            if (parts.empty()) return static_cast<double*>(nullptr);
            const int64_t row = (which * shape.sequences() + chain.sequence) * shape.heads + chain.head;
            return parts.data() + row * shape.key_dim + column;
        };
        // With few chains dq is cut by columns; every part repeats dO V^T. The larger tasks, dk and dv, come
        // first.
        const int64_t threads = omp_get_max_threads();
        const int64_t cuts = std::clamp<int64_t>((threads - count) / std::max<int64_t>(count, 1), 1,
                                                 round_up<R>(shape.key_dim) / kLanes<R>);
        for_each_task(count * (1 + cuts), work, [&](int64_t task) {
            if (task < count) {
                const Chain& chain = chains[static_cast<size_t>(task)];
                key_value_gradient<T>(args, chain, powers.of(chain.head), part(1, chain, 0));
            } else {
                const Chain& chain = chains[static_cast<size_t>((task - count) / cuts)];
                const Columns keys = part_of<R>(shape.key_dim, (task - count) % cuts, cuts);
                query_gradient<T>(args, chain, keys, powers.of(chain.head), part(0, chain, keys.begin));
            }
        });
        if (!shape.theta || !args.dtheta) return;
        for (int64_t c = 0; c < heads_width; ++c) {
            double sum = 0;
            for (int64_t row = 0; row < 2 * shape.sequences(); ++row)
                sum += parts[static_cast<size_t>(row * heads_width + c)];
            R& out = static_cast<R*>(args.dtheta)[c];
            out = static_cast<R>(args.beta == 0 ? sum : args.beta * static_cast<double>(out) + sum);
        }
    });
}

}  // namespace levin::kernels::cpu
