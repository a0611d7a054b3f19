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

// One head on its way through its sequence: where its rows are, and what it reads of a tile.
template <class T>
class GradientHead {
protected:
    using R = arithmetic_t<T>;

    GradientHead(const LightningBackward& args, const Chain& chain, const typename Powers<R>::Head& powers,
                 Angles<R> angles, R* state, double* dtheta)
        : args_(args),
          shape_(args.shape),
          chain_(chain),
          powers_(powers),
          angles_(std::move(angles)),
          state_(state),
          dtheta_(dtheta) {}

    // Begins with `states`, unless that is nullptr: nothing.
    void begin_with(const void* states, int64_t width, int64_t stride) {
        old_ = states != nullptr;
        if (old_)
            load_state_turned(shape_, angles_.columns(), width,
                              state_of(shape_, chain_, static_cast<const R*>(states)), state_, stride);
    }
    int64_t rows(int64_t done) const { return std::min(kTile, chain_.length - done); }
    int64_t d_o_stride() const { return shape_.heads * shape_.value_dim; }
    double time(int64_t done) const { return first_time(args_, chain_) + static_cast<double>(done); }
    // Rows of this head in a tensor as wide as the keys, or as the values, from the tile at token `done` on.
    template <class Pointer>
    auto* key_rows(Pointer x, int64_t stride, int64_t done) const {
        return rows_of<T>(x, chain_.begin + done, stride, chain_.head, shape_.key_dim);
    }
    template <class Pointer>
    auto* value_rows(Pointer x, int64_t stride, int64_t done) const {
        return rows_of<T>(x, chain_.begin + done, stride, chain_.head, shape_.value_dim);
    }

    void load_key_tile(const void* x, int64_t x_stride, int64_t done, R* tile, int64_t stride) const {
        load_keys(shape_.qk_activation, rows(done), shape_.key_dim, angles_, key_rows(x, x_stride, done),
                  x_stride, tile, stride);
    }
    void load_v(int64_t done, R* tile, int64_t stride) const {
        load_rows(shape_.v_activation, rows(done), shape_.value_dim, {0, shape_.value_dim},
                  value_rows(args_.v, args_.v_stride, done), args_.v_stride, tile, stride);
    }
    void load_d_o(int64_t done, R* tile, int64_t stride) const {
        load_rows(Activation::none, rows(done), shape_.value_dim, {0, shape_.value_dim},
                  value_rows(args_.d_o, d_o_stride(), done), d_o_stride(), tile, stride);
    }
    // The gradient of raw q or k, x, from its tile.
    void store_keys(const void* x, int64_t x_stride, int64_t done, const R* tile, int64_t stride, void* dx,
                    int64_t dx_stride) const {
        store_key_gradient(shape_.qk_activation, rows(done), shape_.key_dim, angles_,
                           key_rows(x, x_stride, done), x_stride, tile, stride, key_rows(dx, dx_stride, done),
                           dx_stride, time(done), dtheta_);
    }
    // Asks for rows of the tile at token `done` ahead of their use.
    void fetch_keys(Prefetch& ahead, int64_t done, const void* x, int64_t stride) const {
        fetch_rows<T>(ahead, rows(done), x, chain_.begin + done, stride, chain_.head, shape_.key_dim);
    }
    void fetch_values(Prefetch& ahead, int64_t done, const void* x, int64_t stride) const {
        fetch_rows<T>(ahead, rows(done), x, chain_.begin + done, stride, chain_.head, shape_.value_dim);
    }

    const LightningBackward& args_;
    const LightningShape& shape_;
    const Chain& chain_;
    typename Powers<R>::Head powers_;
    Angles<R> angles_;
    R* state_;
    double* dtheta_;
    bool old_ = false;

public:
    const Angles<R>& angles() const { return angles_; }
};

// dq of a range of columns.
template <class T>
class QueryGradient : public GradientHead<T> {
    using R = arithmetic_t<T>;
    using Base = GradientHead<T>;
    using Base::args_, Base::chain_, Base::powers_, Base::angles_, Base::state_, Base::old_;
    using Base::rows, Base::d_o_stride, Base::load_key_tile, Base::load_v, Base::load_d_o, Base::store_keys,
        Base::fetch_keys, Base::fetch_values;

public:
    using Tiles = AscendingTiles<R>;
    static constexpr bool kDescending = false;
    static Tiles tiles(Scratch& scratch, const LightningShape& shape, Columns keys) {
        return {scratch, shape.value_dim, shape.theta ? 2 * keys.count : keys.count};
    }
    QueryGradient(const LightningBackward& args, const Chain& chain, const typename Powers<R>::Head& powers,
                  Tiles& tiles, Angles<R> angles, R* state, double* dtheta)
        : Base(args, chain, powers, std::move(angles), state, dtheta), tiles_(tiles) {
        Base::begin_with(args.initial_state, tiles.n, tiles.n_stride);
    }
    void outputs(Prefetch& ahead, int64_t done) const {
        fetch_keys(ahead, done, args_.q, args_.q_stride);
        fetch_keys(ahead, done, args_.dq, args_.dq_stride);
    }
    void inputs(Prefetch& ahead, int64_t done) const {
        fetch_values(ahead, done, args_.d_o, d_o_stride());
        fetch_values(ahead, done, args_.v, args_.v_stride);
        fetch_keys(ahead, done, args_.k, args_.k_stride);
    }
    void step(int64_t done) {
        const int64_t m = rows(done);
        angles_.seek(chain_.position + done, m);
        load_d_o(done, tiles_.left, tiles_.width_stride);
        load_v(done, tiles_.right, tiles_.width_stride);
        load_key_tile(args_.k, args_.k_stride, done, tiles_.values, tiles_.n_stride);
        tiles_.ascend(m, powers_, state_, old_, done + m < chain_.length);
        old_ = true;
        store_keys(args_.q, args_.q_stride, done, tiles_.out, tiles_.n_stride, args_.dq, args_.dq_stride);
    }
    void finish() const {}

private:
    Tiles& tiles_;
};

// dk, dv and the gradient of the initial state.
template <class T>
class KeyValueGradient : public GradientHead<T> {
    using R = arithmetic_t<T>;
    using Base = GradientHead<T>;
    using Base::args_, Base::shape_, Base::chain_, Base::powers_, Base::angles_, Base::state_, Base::old_;
    using Base::rows, Base::d_o_stride, Base::load_key_tile, Base::load_v, Base::load_d_o, Base::store_keys,
        Base::fetch_keys, Base::fetch_values, Base::value_rows;

public:
    using Tiles = DescendingTiles<R>;
    static constexpr bool kDescending = true;
    static Tiles tiles(Scratch& scratch, const LightningShape& shape, Columns) {
        return {scratch, shape.key_width(), shape.value_dim};
    }
    KeyValueGradient(const LightningBackward& args, const Chain& chain,
                     const typename Powers<R>::Head& powers, Tiles& tiles, Angles<R> angles, R* state,
                     double* dtheta)
        : Base(args, chain, powers, std::move(angles), state, dtheta), tiles_(tiles) {
        Base::begin_with(args.d_final_state, tiles.width, tiles.width_stride);
    }
    void outputs(Prefetch& ahead, int64_t done) const {
        fetch_keys(ahead, done, args_.dk, args_.dk_stride);
        fetch_values(ahead, done, args_.dv, args_.dv_stride);
    }
    void inputs(Prefetch& ahead, int64_t done) const {
        fetch_keys(ahead, done, args_.q, args_.q_stride);
        fetch_keys(ahead, done, args_.k, args_.k_stride);
        fetch_values(ahead, done, args_.v, args_.v_stride);
        fetch_values(ahead, done, args_.d_o, d_o_stride());
    }
    void step(int64_t done) {
        const int64_t m = rows(done);
        angles_.seek(chain_.position + done, m, -1);
        load_key_tile(args_.q, args_.q_stride, done, tiles_.q, tiles_.width_stride);
        load_key_tile(args_.k, args_.k_stride, done, tiles_.k, tiles_.width_stride);
        load_v(done, tiles_.v, tiles_.n_stride);
        load_d_o(done, tiles_.d_o, tiles_.n_stride);
        tiles_.descend(m, powers_, state_, old_, args_.d_initial_state || done > 0);
        old_ = true;
        store_keys(args_.k, args_.k_stride, done, tiles_.dk, tiles_.width_stride, args_.dk, args_.dk_stride);
        store_value_gradient(shape_.v_activation, m, shape_.value_dim,
                             value_rows(args_.v, args_.v_stride, done), args_.v_stride, tiles_.v,
                             tiles_.n_stride, value_rows(args_.dv, args_.dv_stride, done), args_.dv_stride);
    }
    void finish() const {
        if (!args_.d_initial_state) return;
        R* out = state_of(shape_, chain_, static_cast<R*>(args_.d_initial_state));
        for (int64_t c = 0; c < tiles_.width; ++c)
            for (int64_t e = 0; e < shape_.value_dim; ++e)
                out[c * shape_.value_dim + e] = old_ ? state_[e * tiles_.width_stride + c] : R(0);
    }

private:
    Tiles& tiles_;
};

// One task: `count` heads of one sequence, from `chains` on; dtheta(chain, column) is where a head adds its
// part.
template <class Head, class T, class Part>
void walk(const LightningBackward& args, const Chain* chains, int64_t count, Columns keys,
          const Powers<arithmetic_t<T>>& powers, const Part& dtheta) {
    Scratch& scratch = Scratch::fresh();
    auto tiles = Head::tiles(scratch, args.shape, keys);
    std::vector<Head> heads;
    heads.reserve(static_cast<size_t>(count));
    for (const Chain* chain = chains; chain < chains + count; ++chain)
        heads.emplace_back(args, *chain, powers.of(chain->head), tiles,
                           Angles<arithmetic_t<T>>(scratch, args.shape, chain->head, keys,
                                                   heads.empty() ? nullptr : &heads[0].angles()),
                           tiles.take_state(scratch), dtheta(*chain, keys.begin));
    run_tiles(heads, tiles.ahead, chains->length, Head::kDescending);
    for (const Head& head : heads) head.finish();
}

}  // namespace
}  // namespace lightning

void lightning_backward(const LightningBackward& args) {
    using namespace lightning;
    if (args.await_d_final) args.await_d_final();  // the tasks of dk and dv come first
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
        const int64_t together = cuts > 1 ? 1 : heads_together(shape, count, 2), groups = count / together;
        for_each_task(groups * (1 + cuts), work, [&](int64_t task) {
            const bool query = task >= groups;
            const Chain* first =
                &chains[static_cast<size_t>((query ? (task - groups) / cuts : task) * together)];
            const auto dtheta = [&](const Chain& chain, int64_t column) {
                return part(query ? 0 : 1, chain, column);
            };
            if (query)
                walk<QueryGradient<T>, T>(args, first, together,
                                          part_of<R>(shape.key_dim, (task - groups) % cuts, cuts), powers,
                                          dtheta);
            else
                walk<KeyValueGradient<T>, T>(args, first, together, {0, shape.key_dim}, powers, dtheta);
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
