// Forward pass of lightning attention: tiles ascending, the states in the thread's scratch.
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

int64_t heads_together(const LightningShape& shape, int64_t chains, int64_t tasks) {
    constexpr int64_t most_bytes = 384 << 10;
    const auto state_bytes =
        static_cast<int64_t>(size_of(accumulator_of(shape.dtype))) * shape.key_width() * shape.value_dim;
    const int64_t threads = omp_get_max_threads();
    for (int64_t together = std::min<int64_t>(8, shape.heads); together > 1; --together) {
        // The tasks of a chain are of unequal size: either each kind alone goes evenly into the threads, or
        // there are enough of them.
        const int64_t groups = chains / together;
        if (shape.heads % together == 0 && together * state_bytes <= most_bytes &&
            (groups % threads == 0 || groups * tasks >= 4 * threads))
            return together;
    }
    return 1;
}

namespace {

// One token: each element of the state is touched once, no tile is built.
template <class T>
void forward_token(const LightningForward& args, const Chain& chain, Columns values,
                   Factor<arithmetic_t<T>> decay) {
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
            const R old = in ? in[row + e] : R(0);
            const R updated = decay.whole * old + (decay.part * old + key * v[e]);
            if (out) out[row + e] = updated;
            o[e] += query * updated;
        }
    }
    store_rows(
        1, n, o, 0,
        static_cast<T*>(args.o) + (chain.begin * shape.heads + chain.head) * shape.value_dim + values.begin,
        0);
}

// One head on its way through its sequence.
template <class T>
class ForwardHead {
    using R = arithmetic_t<T>;

public:
    ForwardHead(const LightningForward& args, const Chain& chain, Columns values,
                const typename Powers<R>::Head& powers, AscendingTiles<R>& tiles, Angles<R> angles, R* state)
        : args_(args),
          shape_(args.shape),
          chain_(chain),
          values_(values),
          powers_(powers),
          tiles_(tiles),
          angles_(std::move(angles)),
          state_(state),
          old_(args.initial_state != nullptr) {
        if (!old_) return;
        const R* in = state_of(shape_, chain_, static_cast<const R*>(args.initial_state)) + values.begin;
        for (int64_t c = 0; c < tiles.width; ++c)
            std::copy_n(in + c * shape_.value_dim, tiles.n, state_ + c * tiles.n_stride);
    }
    void outputs(Prefetch& ahead, int64_t done) const {
        fetch_rows<T>(ahead, rows(done), args_.o, chain_.begin + done, o_stride(), chain_.head,
                      shape_.value_dim);
    }
    void inputs(Prefetch& ahead, int64_t done) const {
        const int64_t m = rows(done), token = chain_.begin + done;
        fetch_rows<T>(ahead, m, args_.q, token, args_.q_stride, chain_.head, shape_.key_dim);
        fetch_rows<T>(ahead, m, args_.k, token, args_.k_stride, chain_.head, shape_.key_dim);
        fetch_rows<T>(ahead, m, args_.v, token, args_.v_stride, chain_.head, shape_.value_dim);
    }
    void step(int64_t done) {
        const int64_t m = rows(done), token = chain_.begin + done;
        angles_.seek(chain_.position + done, m);
        load_keys(shape_.qk_activation, m, shape_.key_dim, angles_,
                  rows_of<T>(args_.q, token, args_.q_stride, chain_.head, shape_.key_dim), args_.q_stride,
                  tiles_.left, tiles_.width_stride);
        load_keys(shape_.qk_activation, m, shape_.key_dim, angles_,
                  rows_of<T>(args_.k, token, args_.k_stride, chain_.head, shape_.key_dim), args_.k_stride,
                  tiles_.right, tiles_.width_stride);
        load_rows(shape_.v_activation, m, shape_.value_dim, values_,
                  rows_of<T>(args_.v, token, args_.v_stride, chain_.head, shape_.value_dim), args_.v_stride,
                  tiles_.values, tiles_.n_stride);
        tiles_.ascend(m, powers_, state_, old_, args_.final_state || done + m < chain_.length);
        old_ = true;
        store_rows(m, tiles_.n, tiles_.out, tiles_.n_stride,
                   rows_of<T>(args_.o, token, o_stride(), chain_.head, shape_.value_dim) + values_.begin,
                   o_stride());
    }
    const Angles<R>& angles() const { return angles_; }
    void finish() const {
        if (!args_.final_state) return;
        R* out = state_of(shape_, chain_, static_cast<R*>(args_.final_state)) + values_.begin;
        for (int64_t c = 0; c < tiles_.width; ++c) {
            if (old_)
                std::copy_n(state_ + c * tiles_.n_stride, tiles_.n, out + c * shape_.value_dim);
            else  // an empty document that starts from zero
                std::fill_n(out + c * shape_.value_dim, tiles_.n, R(0));
        }
    }

private:
    int64_t rows(int64_t done) const { return std::min(kTile, chain_.length - done); }
    int64_t o_stride() const { return shape_.heads * shape_.value_dim; }
    const LightningForward& args_;
    const LightningShape& shape_;
    const Chain& chain_;
    Columns values_;
    typename Powers<R>::Head powers_;
    AscendingTiles<R>& tiles_;
    Angles<R> angles_;
    R* state_;
    bool old_;
};

// `chains`: `count` heads of one sequence.
template <class T>
void forward_chains(const LightningForward& args, const Chain* chains, int64_t count, Columns values,
                    const Powers<arithmetic_t<T>>& powers) {
    using R = arithmetic_t<T>;
    const LightningShape& shape = args.shape;
    Scratch& scratch = Scratch::fresh();
    const Columns keys{0, shape.key_dim};
    AscendingTiles<R> tiles(scratch, shape.key_width(), values.count);
    std::vector<ForwardHead<T>> heads;
    heads.reserve(static_cast<size_t>(count));
    for (const Chain* chain = chains; chain < chains + count; ++chain)
        heads.emplace_back(
            args, *chain, values, powers.of(chain->head), tiles,
            Angles<R>(scratch, shape, chain->head, keys, heads.empty() ? nullptr : &heads[0].angles()),
            tiles.take_state(scratch));
    run_tiles(heads, tiles.ahead, chains->length, false);
    for (const ForwardHead<T>& head : heads) head.finish();
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
        const int64_t together = parts > 1 ? 1 : heads_together(shape, count, 1);
        for_each_task(count / together * parts, work, [&](int64_t task) {
            const Chain* first = &chains[static_cast<size_t>(task / parts * together)];
            const Columns values = part_of<R>(shape.value_dim, task % parts, parts);
            if (first->length != 1) return forward_chains<T>(args, first, together, values, powers);
            for (const Chain* chain = first; chain < first + together; ++chain)
                forward_token<T>(args, *chain, values, powers.of(chain->head).decay_over(1));
        });
    });
}

}  // namespace levin::kernels::cpu
