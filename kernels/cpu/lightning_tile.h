// What the forward and the backward pass of lightning attention share: how work is cut, decay powers, and
// rows between memory (raw, any element type) and tiles (activated, position encoded, arithmetic type).
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "kernels/cpu/activation.h"
#include "kernels/cpu/rotation.h"
#include "kernels/cpu/tile.h"
#include "kernels/lightning_attention.h"

namespace levin::kernels::cpu::lightning {

// Tokens of a tile. Measured: 64 is best at head width 64 and 128.
inline constexpr int64_t kTile = 64;
// Triangles are cut into blocks of so many rows.
inline constexpr int64_t kTriangle = 16;

// One head of one sequence: tokens begin .. begin + length of the packed or batched stream.
struct Chain {
    int64_t sequence, head, begin, length, position;  // position of the first token
};
// All chains, the longest first, the heads of a sequence beside each other. Checks the shape and cu_seqlens.
std::vector<Chain> make_chains(const LightningShape& shape);
// How many heads of a sequence one task takes through its tiles together, a divisor of heads. Neighbouring
// heads are neighbours in memory: taken together they use whole pages and what the processor fetches ahead by
// itself. But their states must stay in the core's cache, and every thread needs work. `tasks`: per chain,
// when alone.
int64_t heads_together(const LightningShape& shape, int64_t chains, int64_t tasks);

struct Columns {
    int64_t begin, count;
};
// Part `part` of `parts` of n columns, cut at multiples of a vector.
template <class R>
Columns part_of(int64_t n, int64_t part, int64_t parts) {
    const int64_t vectors = round_up<R>(n) / kLanes<R>;
    const int64_t begin = std::min(n, vectors * part / parts * kLanes<R>);
    return {begin, std::min(n, vectors * (part + 1) / parts * kLanes<R>) - begin};
}

// Powers of the decay of every head, lambda^n = exp(-slope n) each from its own exponential.
template <class R>
class Powers {
public:
    Powers(const LightningShape& shape, int64_t longest) : slopes_(shape.slopes) {
        const int64_t tile = std::min(kTile, longest);
        values_.assign(static_cast<size_t>(shape.heads * 4 * kTile), R(0));
        for (int64_t head = 0; head < shape.heads; ++head)
            for (int64_t n = 0; n <= tile; ++n) {
                const R power = static_cast<R>(std::exp(-static_cast<double>(shape.slopes[head]) * n));
                R* down = values_.data() + head * 4 * kTile;
                if (n < kTile) down[kTile - 1 - n] = power;
                down[2 * kTile + kTile - 1 + n] = power;
            }
    }
    struct Head {
        const R* down;  // down[kTile - 1 - n] = lambda^n, zero behind
        const R* up;    // up[kTile - 1 + n] = lambda^n, zero before
        double slope;
        R power(int64_t n) const { return up[kTile - 1 + n]; }
        // What a state is multiplied by for a step of m tokens.
        Factor<R> decay_over(int64_t m) const {
            const double lost = std::expm1(-slope * static_cast<double>(m));
            return lost > -0.5 ? Factor<R>{1, static_cast<R>(lost)} : Factor<R>{0, power(m)};
        }
        // lambda^n, lambda^(n+1), ..
        const R* ascending_from(int64_t n) const { return up + kTile - 1 + n; }
        // lambda^n, lambda^(n-1), .. 1, 0
        const R* descending_from(int64_t n) const { return down + kTile - 1 - n; }
    };
    Head of(int64_t head) const {
        const R* first = values_.data() + head * 4 * kTile;
        return {first, first + 2 * kTile, slopes_[head]};
    }

private:
    const float* slopes_;
    std::vector<R> values_;
};

// rows[r] *= factor[r]
template <class R>
void scale_rows(int64_t rows, int64_t columns, R* tile, int64_t stride, const R* factor) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < columns; ++c) tile[r * stride + c] *= factor[r];
}
// columns[c] *= factor[c]
template <class R>
void scale_columns(int64_t rows, int64_t columns, R* tile, int64_t stride, const R* __restrict factor) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < columns; ++c) tile[r * stride + c] *= factor[c];
}

// Row `token`, columns of `head`, of a tensor [tokens, heads, dim] with a stride between tokens.
template <class T>
const T* rows_of(const void* x, int64_t token, int64_t stride, int64_t head, int64_t dim) {
    return static_cast<const T*>(x) + token * stride + head * dim;
}
template <class T>
T* rows_of(void* x, int64_t token, int64_t stride, int64_t head, int64_t dim) {
    return static_cast<T*>(x) + token * stride + head * dim;
}

// Asks for rows of a tensor, as rows_of, ahead of their use.
template <class T>
void fetch_rows(Prefetch& ahead, int64_t rows, const void* x, int64_t token, int64_t stride, int64_t head,
                int64_t dim) {
    constexpr int64_t size = sizeof(T);
    ahead.add(rows_of<T>(x, token, stride, head, dim), rows, stride * size, dim * size);
}

// Cosines and sines of a tile's positions for the LRPE of `columns` of one head. Without theta: an empty
// table.
template <class R>
class Angles {
public:
    // `other`: angles of another head of the same task, whose table is used (they take turns), or nullptr.
    Angles(Scratch& scratch, const LightningShape& shape, int64_t head, Columns columns,
           const Angles* other = nullptr)
        : columns_(columns), stride_(tile_stride<R>(columns.count)) {
        if (!shape.theta) return;
        rotation_.emplace(scratch, static_cast<const R*>(shape.theta) + head * shape.key_dim + columns.begin,
                          columns.count);
        cos_ = other ? other->cos_ : scratch.take<R>(kTile * stride_);
        sin_ = other ? other->sin_ : scratch.take<R>(kTile * stride_);
    }
    // Fills the rows of positions first .. first + rows. Neighbouring tiles, in either direction, follow each
    // other by rotation alone.
    void seek(int64_t first, int64_t rows, int direction = 1) {
        if (!rotation_) return;
        const int64_t start = direction > 0 ? first : first + rows - 1;
        if (next_ != start) rotation_->seek(start);
        for (int64_t i = 0; i < rows; ++i, rotation_->step(direction)) {
            const int64_t r = direction > 0 ? i : rows - 1 - i;
            for (int64_t c = 0; c < columns_.count; ++c) {
                cos_[r * stride_ + c] = static_cast<R>(rotation_->cos()[c]);
                sin_[r * stride_ + c] = static_cast<R>(rotation_->sin()[c]);
            }
        }
        next_ = start + direction * rows;
    }
    bool any() const { return cos_ != nullptr; }
    int64_t width() const { return any() ? 2 * columns_.count : columns_.count; }
    const R* cos(int64_t row) const { return cos_ + row * stride_; }
    const R* sin(int64_t row) const { return sin_ + row * stride_; }
    Columns columns() const { return columns_; }

private:
    Columns columns_;
    int64_t stride_, next_ = -1;
    std::optional<Rotation> rotation_;
    R *cos_ = nullptr, *sin_ = nullptr;
};

// The maximum that Activation::exp subtracts, zero for every other.
template <Activation A, class T>
arithmetic_t<T> exp_shift(const T* row, int64_t group) {
    arithmetic_t<T> shift = 0;
    if constexpr (A == Activation::exp) {
        shift = load(row[0]);
        for (int64_t c = 1; c < group; ++c) shift = std::max(shift, load(row[c]));
    }
    return shift;
}

// tile[r, 0 .. columns.count) = activation(x[r, columns]); `group` is the width of the head in x.
template <class T>
void load_rows(Activation activation, int64_t rows, int64_t group, Columns columns, const T* x,
               int64_t x_stride, arithmetic_t<T>* tile, int64_t stride) {
    with_activation(activation, [&](auto tag) {
        constexpr Activation A = tag;
        for (int64_t r = 0; r < rows; ++r) {
            const T* row = x + r * x_stride;
            const auto shift = exp_shift<A>(row, group);
            arithmetic_t<T>* __restrict out = tile + r * stride;
            for (int64_t c = 0; c < columns.count; ++c)
                out[c] = activation_value<A>(load(row[columns.begin + c]) - shift);
        }
    });
}

// The same and LRPE behind it: tile[r] = concat[a cos, a sin].
template <class T>
void load_keys(Activation activation, int64_t rows, int64_t group, const Angles<arithmetic_t<T>>& angles,
               const T* x, int64_t x_stride, arithmetic_t<T>* tile, int64_t stride) {
    const int64_t count = angles.columns().count;
    load_rows(activation, rows, group, angles.columns(), x, x_stride, tile, stride);
    if (!angles.any()) return;
    for (int64_t r = 0; r < rows; ++r) {
        arithmetic_t<T>* row = tile + r * stride;
        for (int64_t c = 0; c < count; ++c) row[count + c] = row[c] * angles.sin(r)[c];
        for (int64_t c = 0; c < count; ++c) row[c] *= angles.cos(r)[c];
    }
}

// out[r, c] = narrow(tile[r, c])
template <class T>
void store_rows(int64_t rows, int64_t columns, const arithmetic_t<T>* tile, int64_t stride, T* out,
                int64_t out_stride) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < columns; ++c) out[r * out_stride + c] = narrow<T>(tile[r * stride + c]);
}

// A state in memory is [width, value_dim]; a tile holds some of its rows and columns, perhaps transposed.
// This maps a tile's row (of the key width: columns of Angles) to the state's row.
inline int64_t state_row(const LightningShape& shape, Columns keys, int64_t row) {
    return row < keys.count ? keys.begin + row : shape.key_dim + keys.begin + row - keys.count;
}
template <class R>
R* state_of(const LightningShape& shape, const Chain& chain, R* states) {
    return states + (chain.sequence * shape.heads + chain.head) * shape.key_width() * shape.value_dim;
}

// Takes the heads of a task tile by tile through their sequence, ascending or descending. A Head has
//   outputs(ahead, done), inputs(ahead, done): name the rows it writes and reads of the tile at token `done`
//   step(done): does that tile
template <class Head>
void run_tiles(std::vector<Head>& heads, Prefetch& ahead, int64_t length, bool descending) {
    const int64_t last = length > 0 ? (length - 1) / kTile * kTile : 0;
    for (int64_t i = 0; i < length; i += kTile) {
        const int64_t done = descending ? last - i : i, next = descending ? done - kTile : done + kTile;
        for (size_t h = 0; h < heads.size(); ++h) {
            ahead.clear();
            heads[h].outputs(ahead, done);
            if (h + 1 < heads.size())
                heads[h + 1].inputs(ahead, done);
            else if (next >= 0 && next < length)
                heads[0].inputs(ahead, next);
            heads[h].step(done);
        }
    }
}

}  // namespace levin::kernels::cpu::lightning
