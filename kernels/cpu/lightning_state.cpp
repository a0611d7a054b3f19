// What sequences add to the state: the half of a tile's step that makes no output.
#include "kernels/backends.h"
#include "kernels/cpu/lightning_step.h"

namespace levin::kernels::cpu {
namespace lightning {
namespace {

// One head on its way through its sequence; columns of the values. Mirrored it goes down, and a token's
// weight counts from the other end.
template <class T>
void walk_state(const LightningState& args, const Chain& chain, Columns values,
                const typename Powers<arithmetic_t<T>>::Head& powers) {
    using R = arithmetic_t<T>;
    const LightningShape& shape = args.shape;
    Scratch& scratch = Scratch::fresh();
    Angles<R> angles(scratch, shape, chain.head, {0, shape.key_dim});
    const int64_t width = angles.width(), n = values.count;
    const int64_t width_stride = tile_stride<R>(width), n_stride = tile_stride<R>(n),
                  turned_stride = tile_stride<R>(kTile);
    R *keys = scratch.take<R>(kTile * width_stride),
      *turned = scratch.take<R>(round_up<R>(width) * turned_stride),
      *tile = scratch.take<R>(kTile * n_stride), *state = scratch.take<R>(width * n_stride);
    const Activation activation = args.mirrored ? Activation::none : shape.v_activation;
    Prefetch ahead;
    const int64_t tiles = (chain.length + kTile - 1) / kTile;
    for (int64_t i = 0; i < tiles; ++i) {
        const int64_t done = (args.mirrored ? tiles - 1 - i : i) * kTile, token = chain.begin + done,
                      m = std::min(kTile, chain.length - done);
        angles.seek(chain.position + done, m, args.mirrored ? -1 : 1);
        load_keys(shape.qk_activation, m, shape.key_dim, angles,
                  rows_of<T>(args.keys, token, args.key_stride, chain.head, shape.key_dim), args.key_stride,
                  keys, width_stride);
        load_rows(activation, m, shape.value_dim, values,
                  rows_of<T>(args.values, token, args.value_stride, chain.head, shape.value_dim),
                  args.value_stride, tile, n_stride);
        transpose(m, width, keys, width_stride, turned, turned_stride);
        scale_columns(width, m, turned, turned_stride,
                      args.mirrored ? powers.ascending_from(1) : powers.descending_from(m - 1));
        multiply(width, n, m, turned, turned_stride, tile, n_stride, state, n_stride, powers.decay_over(m),
                 i > 0, &ahead);
    }
    R* out = state_of(shape, chain, static_cast<R*>(args.state)) + values.begin;
    for (int64_t c = 0; c < width; ++c)
        if (tiles > 0)
            std::copy_n(state + c * n_stride, n, out + c * shape.value_dim);
        else
            std::fill_n(out + c * shape.value_dim, n, R(0));
}

}  // namespace
}  // namespace lightning

void lightning_state(const LightningState& args) {
    using namespace lightning;
    const LightningShape& shape = args.shape;
    const std::vector<Chain> chains = make_chains(shape);
    if (chains.empty() || !args.state) return;
    const auto count = static_cast<int64_t>(chains.size());
    const double work = 2.0 * static_cast<double>(shape.batch * shape.length * shape.heads) *
                        shape.key_width() * shape.value_dim;
    with_floating(shape.dtype, [&](auto tag) {
        using T = typename decltype(tag)::type;
        using R = arithmetic_t<T>;
        const Powers<R> powers(shape, chains.front().length);
        // Few chains on many threads are cut by columns of the values; nothing but the keys is read twice.
        const int64_t parts =
            std::clamp<int64_t>(omp_get_max_threads() / count, 1, round_up<R>(shape.value_dim) / kLanes<R>);
        for_each_task(count * parts, work, [&](int64_t task) {
            const Chain& chain = chains[static_cast<size_t>(task / parts)];
            walk_state<T>(args, chain, part_of<R>(shape.value_dim, task % parts, parts),
                          powers.of(chain.head));
        });
    });
}

}  // namespace levin::kernels::cpu
