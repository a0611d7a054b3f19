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

// dq of a range of columns, one head.
template <class T>
class QueryGradient {
    using R = arithmetic_t<T>;

public:
    QueryGradient(const LightningBackward& args, const Chain& chain, const typename Powers<R>::Head& powers,
                  AscendingTiles<R>& tiles, Angles<R> angles, R* state, double* dtheta)
        : args_(args),
          shape_(args.shape),
          chain_(chain),
          powers_(powers),
          tiles_(tiles),
          angles_(std::move(angles)),
          state_(state),
          dtheta_(dtheta),
          old_(args.initial_state != nullptr) {
        if (old_)
            load_state_turned(shape_, angles_.columns(), tiles.n,
                              state_of(shape_, chain, static_cast<const R*>(args.initial_state)), state_,
                              tiles.n_stride);
    }
    const Angles<R>& angles() const { return angles_; }
    void outputs(Prefetch& ahead, int64_t done) const {
        const int64_t m = rows(done), token = chain_.begin + done;
        fetch_rows<T>(ahead, m, args_.q, token, args_.q_stride, chain_.head, shape_.key_dim);
        fetch_rows<T>(ahead, m, args_.dq, token, args_.dq_stride, chain_.head, shape_.key_dim);
    }
    void inputs(Prefetch& ahead, int64_t done) const {
        const int64_t m = rows(done), token = chain_.begin + done;
        fetch_rows<T>(ahead, m, args_.d_o, token, d_o_stride(), chain_.head, shape_.value_dim);
        fetch_rows<T>(ahead, m, args_.v, token, args_.v_stride, chain_.head, shape_.value_dim);
        fetch_rows<T>(ahead, m, args_.k, token, args_.k_stride, chain_.head, shape_.key_dim);
    }
    void step(int64_t done) {
        const int64_t m = rows(done), token = chain_.begin + done;
        const Columns values{0, shape_.value_dim};
        angles_.seek(chain_.position + done, m);
        load_rows(Activation::none, m, shape_.value_dim, values,
                  rows_of<T>(args_.d_o, token, d_o_stride(), chain_.head, shape_.value_dim), d_o_stride(),
                  tiles_.left, tiles_.width_stride);
        load_rows(shape_.v_activation, m, shape_.value_dim, values,
                  rows_of<T>(args_.v, token, args_.v_stride, chain_.head, shape_.value_dim), args_.v_stride,
                  tiles_.right, tiles_.width_stride);
        load_keys(shape_.qk_activation, m, shape_.key_dim, angles_,
                  rows_of<T>(args_.k, token, args_.k_stride, chain_.head, shape_.key_dim), args_.k_stride,
                  tiles_.values, tiles_.n_stride);
        tiles_.ascend(m, powers_, state_, old_, done + m < chain_.length);
        old_ = true;
        store_key_gradient(shape_.qk_activation, m, shape_.key_dim, angles_,
                           rows_of<T>(args_.q, token, args_.q_stride, chain_.head, shape_.key_dim),
                           args_.q_stride, tiles_.out, tiles_.n_stride,
                           rows_of<T>(args_.dq, token, args_.dq_stride, chain_.head, shape_.key_dim),
                           args_.dq_stride, first_time(args_, chain_) + static_cast<double>(done), dtheta_);
    }

private:
    int64_t rows(int64_t done) const { return std::min(kTile, chain_.length - done); }
    int64_t d_o_stride() const { return shape_.heads * shape_.value_dim; }
    const LightningBackward& args_;
    const LightningShape& shape_;
    const Chain& chain_;
    typename Powers<R>::Head powers_;
    AscendingTiles<R>& tiles_;
    Angles<R> angles_;
    R* state_;
    double* dtheta_;
    bool old_;
};

// dk, dv and the gradient of the initial state, one head.
template <class T>
class KeyValueGradient {
    using R = arithmetic_t<T>;

public:
    KeyValueGradient(const LightningBackward& args, const Chain& chain,
                     const typename Powers<R>::Head& powers, DescendingTiles<R>& tiles, Angles<R> angles,
                     R* state, double* dtheta)
        : args_(args),
          shape_(args.shape),
          chain_(chain),
          powers_(powers),
          tiles_(tiles),
          angles_(std::move(angles)),
          state_(state),
          dtheta_(dtheta),
          old_(args.d_final_state != nullptr) {
        if (old_)
            load_state_turned(shape_, angles_.columns(), tiles.width,
                              state_of(shape_, chain, static_cast<const R*>(args.d_final_state)), state_,
                              tiles.width_stride);
    }
    const Angles<R>& angles() const { return angles_; }
    void outputs(Prefetch& ahead, int64_t done) const {
        const int64_t m = rows(done), token = chain_.begin + done;
        fetch_rows<T>(ahead, m, args_.dk, token, args_.dk_stride, chain_.head, shape_.key_dim);
        fetch_rows<T>(ahead, m, args_.dv, token, args_.dv_stride, chain_.head, shape_.value_dim);
    }
    void inputs(Prefetch& ahead, int64_t done) const {
        const int64_t m = rows(done), token = chain_.begin + done;
        fetch_rows<T>(ahead, m, args_.q, token, args_.q_stride, chain_.head, shape_.key_dim);
        fetch_rows<T>(ahead, m, args_.k, token, args_.k_stride, chain_.head, shape_.key_dim);
        fetch_rows<T>(ahead, m, args_.v, token, args_.v_stride, chain_.head, shape_.value_dim);
        fetch_rows<T>(ahead, m, args_.d_o, token, d_o_stride(), chain_.head, shape_.value_dim);
    }
    void step(int64_t done) {
        const int64_t m = rows(done), token = chain_.begin + done;
        const Columns values{0, shape_.value_dim};
        const T* k = rows_of<T>(args_.k, token, args_.k_stride, chain_.head, shape_.key_dim);
        const T* v = rows_of<T>(args_.v, token, args_.v_stride, chain_.head, shape_.value_dim);
        angles_.seek(chain_.position + done, m, -1);
        load_keys(shape_.qk_activation, m, shape_.key_dim, angles_,
                  rows_of<T>(args_.q, token, args_.q_stride, chain_.head, shape_.key_dim), args_.q_stride,
                  tiles_.q, tiles_.width_stride);
        load_keys(shape_.qk_activation, m, shape_.key_dim, angles_, k, args_.k_stride, tiles_.k,
                  tiles_.width_stride);
        load_rows(shape_.v_activation, m, shape_.value_dim, values, v, args_.v_stride, tiles_.v,
                  tiles_.n_stride);
        load_rows(Activation::none, m, shape_.value_dim, values,
                  rows_of<T>(args_.d_o, token, d_o_stride(), chain_.head, shape_.value_dim), d_o_stride(),
                  tiles_.d_o, tiles_.n_stride);
        tiles_.descend(m, powers_, state_, old_, args_.d_initial_state || done > 0);
        old_ = true;
        store_key_gradient(shape_.qk_activation, m, shape_.key_dim, angles_, k, args_.k_stride, tiles_.dk,
                           tiles_.width_stride,
                           rows_of<T>(args_.dk, token, args_.dk_stride, chain_.head, shape_.key_dim),
                           args_.dk_stride, first_time(args_, chain_) + static_cast<double>(done), dtheta_);
        store_value_gradient(
            shape_.v_activation, m, shape_.value_dim, v, args_.v_stride, tiles_.v, tiles_.n_stride,
            rows_of<T>(args_.dv, token, args_.dv_stride, chain_.head, shape_.value_dim), args_.dv_stride);
    }
    void finish() const {
        if (!args_.d_initial_state) return;
        R* out = state_of(shape_, chain_, static_cast<R*>(args_.d_initial_state));
        for (int64_t c = 0; c < tiles_.width; ++c)
            for (int64_t e = 0; e < shape_.value_dim; ++e)
                out[c * shape_.value_dim + e] = old_ ? state_[e * tiles_.width_stride + c] : R(0);
    }

private:
    int64_t rows(int64_t done) const { return std::min(kTile, chain_.length - done); }
    int64_t d_o_stride() const { return shape_.heads * shape_.value_dim; }
    const LightningBackward& args_;
    const LightningShape& shape_;
    const Chain& chain_;
    typename Powers<R>::Head powers_;
    DescendingTiles<R>& tiles_;
    Angles<R> angles_;
    R* state_;
    double* dtheta_;
    bool old_;
};

// `count` heads of one sequence, from `chains` on; dtheta(chain, column) is where a head adds its part.
template <class T, template <class> class Head, class Tiles, class Part>
std::vector<Head<T>> heads_of(const LightningBackward& args, const Chain* chains, int64_t count, Columns keys,
                              const Powers<arithmetic_t<T>>& powers, Scratch& scratch, Tiles& tiles,
                              const Part& dtheta) {
    using R = arithmetic_t<T>;
    std::vector<Head<T>> heads;
    heads.reserve(static_cast<size_t>(count));
    for (const Chain* chain = chains; chain < chains + count; ++chain)
        heads.emplace_back(
            args, *chain, powers.of(chain->head), tiles,
            Angles<R>(scratch, args.shape, chain->head, keys, heads.empty() ? nullptr : &heads[0].angles()),
            tiles.take_state(scratch), dtheta(*chain, keys.begin));
    return heads;
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
            Scratch& scratch = Scratch::fresh();
            if (task < groups) {
                const Chain* first = &chains[static_cast<size_t>(task * together)];
                DescendingTiles<R> tiles(scratch, shape.key_width(), shape.value_dim);
                auto heads = heads_of<T, KeyValueGradient>(
                    args, first, together, {0, shape.key_dim}, powers, scratch, tiles,
                    [&](const Chain& chain, int64_t column) { return part(1, chain, column); });
                run_tiles(heads, tiles.ahead, first->length, true);
                for (const auto& head : heads) head.finish();
            } else {
                const Chain* first = &chains[static_cast<size_t>((task - groups) / cuts * together)];
                const Columns keys = part_of<R>(shape.key_dim, (task - groups) % cuts, cuts);
                AscendingTiles<R> tiles(scratch, shape.value_dim, shape.theta ? 2 * keys.count : keys.count);
                auto heads = heads_of<T, QueryGradient>(
                    args, first, together, keys, powers, scratch, tiles,
                    [&](const Chain& chain, int64_t column) { return part(0, chain, column); });
                run_tiles(heads, tiles.ahead, first->length, false);
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
