// The matrix products of one tile of lightning attention (SPEC: lightning attention in tiles), on data
// already loaded.
#pragma once

#include <cstdint>

#include "kernels/cpu/lightning_tile.h"

namespace levin::kernels::cpu::lightning {

// Square [m, m] = (A B) where column <= row, times lambda^(row - column). A [m, depth], B [depth, m]. Columns
// up to the end of the row's block of `granule` (a multiple of kTriangle) are written, those behind the
// diagonal with zero.
template <class R>
void lower_square(int64_t m, int64_t depth, const R* a, int64_t a_stride, const R* b, int64_t b_stride,
                  R* square, int64_t stride, const typename Powers<R>::Head& powers, Prefetch& ahead,
                  int64_t granule = kTriangle) {
    for (int64_t r = 0; r < m; r += kTriangle) {
        const int64_t rows = std::min(kTriangle, m - r), reach = std::min(m, (r / granule + 1) * granule);
        R* block = square + r * stride;
        multiply(rows, reach, depth, a + r * a_stride, a_stride, b, b_stride, block, stride, kOne<R>, false,
                 &ahead);
        for (int64_t i = 0; i < rows; ++i) {
            const R* mask = powers.descending_from(r + i);
            for (int64_t c = 0; c < reach; ++c) block[i * stride + c] *= mask[c];
        }
    }
}

// The tiles of a pass in ascending order (the heads of a task take turns with them), and its step
//   Out = [(L R^T) masked] X + Lambda (L S);   S = lambda^m S + (W R)^T X.
// L, R [m, width], X, Out [m, n], S [width, n]. Forward: q, k, v. Gradient of q: do, v, k and the state
// transposed.
template <class R>
struct AscendingTiles {
    Prefetch ahead;
    int64_t width, n;
    int64_t width_stride, n_stride, square_stride;
    R *left, *right, *turned, *values, *square, *out;

    AscendingTiles(Scratch& scratch, int64_t width, int64_t n)
        : width(width),
          n(n),
          width_stride(tile_stride<R>(width)),
          n_stride(tile_stride<R>(n)),
          square_stride(tile_stride<R>(kTile)),
          left(scratch.take<R>(kTile * width_stride)),
          right(scratch.take<R>(kTile * width_stride)),
          turned(scratch.take<R>(round_up<R>(width) * square_stride)),
          values(scratch.take<R>(kTile * n_stride)),
          square(scratch.take<R>(kTile * square_stride)),
          out(scratch.take<R>(kTile * n_stride)) {}

    R* take_state(Scratch& scratch) const { return scratch.take<R>(width * n_stride); }

    // `old` false: the state is zero on entry (and not read); `more` false: it is not wanted any more.
    void ascend(int64_t m, const typename Powers<R>::Head& powers, R* state, bool old, bool more) {
        transpose(m, width, right, width_stride, turned, square_stride);
        lower_square(m, width, left, width_stride, turned, square_stride, square, square_stride, powers,
                     ahead);
        if (old) {
            scale_rows(m, width, left, width_stride, powers.ascending_from(1));
            multiply(m, n, width, left, width_stride, state, n_stride, out, n_stride, kOne<R>, false, &ahead);
        }
        for (int64_t r = 0; r < m; r += kTriangle) {
            const int64_t rows = std::min(kTriangle, m - r);
            multiply(rows, n, r + rows, square + r * square_stride, square_stride, values, n_stride,
                     out + r * n_stride, n_stride, kOne<R>, old, &ahead);
        }
        if (more) {
            scale_columns(width, m, turned, square_stride, powers.descending_from(m - 1));
            multiply(width, n, m, turned, square_stride, values, n_stride, state, n_stride,
                     powers.decay_over(m), old, &ahead);
        }
    }
};

// The tiles of the descending pass, and its step
//   dK = [(dO V^T) masked]^T Q + W (V dS^T);   dV = [(Q K^T) masked]^T dO + W (K dS);   dS = lambda^m dS +
//   (Lambda Q)^T dO
// with dS kept transposed [n, width], and dV made transposed: so each of the six products has row-major
// operands and only K, dO and dV are turned.
template <class R>
struct DescendingTiles {
    static constexpr int64_t kColumnBlock =
        2 * kTriangle;  // one vector of columns would run at half the rate
    Prefetch ahead;
    int64_t width, n;
    int64_t width_stride, n_stride, square_stride;
    R *q, *k, *v, *d_o, *k_turned, *d_o_turned, *p, *dp_turned, *dk, *dv_turned;

    DescendingTiles(Scratch& scratch, int64_t width, int64_t n)
        : width(width),
          n(n),
          width_stride(tile_stride<R>(width)),
          n_stride(tile_stride<R>(n)),
          square_stride(tile_stride<R>(kTile)),
          q(scratch.take<R>(kTile * width_stride)),
          k(scratch.take<R>(kTile * width_stride)),
          v(scratch.take<R>(kTile * n_stride)),
          d_o(scratch.take<R>(kTile * n_stride)),
          k_turned(scratch.take<R>(round_up<R>(width) * square_stride)),
          d_o_turned(scratch.take<R>(round_up<R>(n) * square_stride)),
          p(scratch.take<R>(kTile * square_stride)),
          dp_turned(scratch.take<R>(kTile * square_stride)),
          dk(scratch.take<R>(kTile * width_stride)),
          dv_turned(scratch.take<R>(round_up<R>(n) * square_stride)) {}

    R* take_state(Scratch& scratch) const { return scratch.take<R>(n * width_stride); }

    // Leaves dk in dk and dv in v. `old`, `more` as above.
    void descend(int64_t m, const typename Powers<R>::Head& powers, R* state, bool old, bool more) {
        transpose(m, width, k, width_stride, k_turned, square_stride);
        transpose(m, n, d_o, n_stride, d_o_turned, square_stride);
        lower_square(m, width, q, width_stride, k_turned, square_stride, p, square_stride, powers, ahead,
                     kColumnBlock);
        for (int64_t s = 0; s < m; s += kTriangle) {  // rows s, columns t >= s
            const int64_t rows = std::min(kTriangle, m - s);
            R* block = dp_turned + s * square_stride + s;
            multiply(rows, m - s, n, v + s * n_stride, n_stride, d_o_turned + s, square_stride, block,
                     square_stride, kOne<R>, false, &ahead);
            for (int64_t i = 0; i < rows; ++i) {
                const R* mask = powers.ascending_from(-i);
                for (int64_t c = 0; c < m - s; ++c) block[i * square_stride + c] *= mask[c];
            }
        }
        const R* weights = powers.descending_from(m - 1);
        if (old) {
            scale_rows(m, n, v, n_stride, weights);
            multiply(m, width, n, v, n_stride, state, width_stride, dk, width_stride, kOne<R>, false, &ahead);
            scale_columns(width, m, k_turned, square_stride, weights);
            multiply(n, m, width, state, width_stride, k_turned, square_stride, dv_turned, square_stride,
                     kOne<R>, false, &ahead);
        }
        for (int64_t s = 0; s < m; s += kTriangle)
            multiply(std::min(kTriangle, m - s), width, m - s, dp_turned + s * square_stride + s,
                     square_stride, q + s * width_stride, width_stride, dk + s * width_stride, width_stride,
                     kOne<R>, old, &ahead);
        for (int64_t s = 0; s < m; s += kColumnBlock)
            multiply(n, std::min(kColumnBlock, m - s), m - s, d_o_turned + s, square_stride,
                     p + s * square_stride + s, square_stride, dv_turned + s, square_stride, kOne<R>, old,
                     &ahead);
        transpose(n, m, dv_turned, square_stride, v, n_stride);
        if (more) {
            scale_rows(m, width, q, width_stride, powers.ascending_from(1));
            multiply(n, width, m, d_o_turned, square_stride, q, width_stride, state, width_stride,
                     powers.decay_over(m), old, &ahead);
        }
    }
};

}  // namespace levin::kernels::cpu::lightning
