// Products and transposes of small matrices that live in a core's caches: what the attention kernels are made
// of.
//
// A tile is a row-major matrix in arithmetic type whose rows are padded to whole vectors (tile_stride).
// Products read and write the padding of the columns; what stands there is never part of a result. Every
// element of a product is summed over k in ascending order whatever the block shape, so the bits do not
// depend on how rows or columns are cut.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>

namespace levin::kernels::cpu {

// Accumulators fill about half of the registers, which already hides the latency of a fused multiply-add, and
// divide the usual tile sizes without a rest. Measured on a Xeon with AVX-512: 150 to 160 GFLOP/s of one
// core's 165.
#ifdef __AVX512F__
inline constexpr int64_t kVectorBytes = 64;
inline constexpr int64_t kBlockVectors = 4;
#else
inline constexpr int64_t kVectorBytes = 32;
inline constexpr int64_t kBlockVectors = 3;
#endif

template <class R>
inline constexpr int64_t kLanes = kVectorBytes / static_cast<int64_t>(sizeof(R));

template <class R>
constexpr int64_t round_up(int64_t n) {
    return (n + kLanes<R> - 1) / kLanes<R> * kLanes<R>;
}
// Distance between rows of a tile: an odd number of vectors, or the rows of a panel would fall into few cache
// sets.
template <class R>
constexpr int64_t tile_stride(int64_t columns) {
    const int64_t padded = round_up<R>(columns);
    return padded / kLanes<R> % 2 == 0 ? padded + kLanes<R> : padded;
}

// Rows of memory that the next tile will read or write. Products fetch a few cache lines of them after each
// block: the rows of a head lie on a page each, where the processor does not look ahead by itself, and all at
// once they would wait for each other.
class Prefetch {
public:
    void add(const void* first, int64_t rows, int64_t stride_bytes, int64_t row_bytes) {
        if (parts_ < kParts)
            part_[parts_++] = {static_cast<const char*>(first), rows, stride_bytes, row_bytes};
    }
    void clear() { parts_ = now_ = 0; }
    void step() {
        for (int64_t lines = 0; lines < kLinesPerStep && now_ < parts_;) {
            Part& part = part_[now_];
            if (part.rows-- == 0) {
                ++now_;
                continue;
            }
            for (int64_t byte = 0; byte < part.row_bytes; byte += kLine, ++lines)
                __builtin_prefetch(part.row + byte);
            part.row += part.stride_bytes;
        }
    }

private:
    static constexpr size_t kParts = 6;
    static constexpr int64_t kLine = 64,
                             kLinesPerStep = 12;  // about as many as can be on their way at a time
    struct Part {
        const char* row;
        int64_t rows, stride_bytes, row_bytes;
    };
    Part part_[kParts];
    size_t parts_ = 0, now_ = 0;
};

// A number close to one kept as whole + part = 1 + (number - 1), or any other as 0 + number: what a sum is
// multiplied by again and again must not carry the rounding error of its distance from one.
template <class R>
struct Factor {
    R whole, part;
};
template <class R>
inline constexpr Factor<R> kOne{1, 0};

namespace detail {

template <class R>
struct VectorOf {
    typedef R value __attribute__((vector_size(kVectorBytes)));
    typedef R memory __attribute__((vector_size(kVectorBytes), aligned(sizeof(R)), may_alias));
};
template <class R>
inline typename VectorOf<R>::value load_vector(const R* from) {
    return *reinterpret_cast<const typename VectorOf<R>::memory*>(from);
}
template <class R>
inline void store_vector(R* to, typename VectorOf<R>::value value) {
    *reinterpret_cast<typename VectorOf<R>::memory*>(to) = value;
}

// One block of C, rows x (vectors * lanes), held in registers while k runs.
template <class R, int rows, int vectors>
inline void multiply_block(int64_t depth, const R* a, int64_t a_stride, const R* b, int64_t b_stride, R* c,
                           int64_t c_stride, Factor<R> scale, bool keep) {
    typename VectorOf<R>::value sum[rows][vectors] = {};
    for (int64_t k = 0; k < depth; ++k) {
        typename VectorOf<R>::value right[vectors];
#pragma GCC unroll 8
        for (int j = 0; j < vectors; ++j) right[j] = load_vector(b + k * b_stride + j * kLanes<R>);
#pragma GCC unroll 8
        for (int i = 0; i < rows; ++i) {
            const R left = a[i * a_stride + k];
#pragma GCC unroll 8
            for (int j = 0; j < vectors; ++j) sum[i][j] += left * right[j];
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 8
        for (int j = 0; j < vectors; ++j) {
            R* out = c + i * c_stride + j * kLanes<R>;
            if (keep) {
                const auto old = load_vector(out);
                sum[i][j] = scale.whole * old + (scale.part * old + sum[i][j]);
            }
            store_vector(out, sum[i][j]);
        }
}

template <class R, int vectors, int rows = vectors <= 2 ? 8 : 4>
inline void multiply_rows(int64_t count, int64_t depth, const R* a, int64_t a_stride, const R* b,
                          int64_t b_stride, R* c, int64_t c_stride, Factor<R> scale, bool keep,
                          Prefetch* ahead) {
    for (; count >= rows; count -= rows, a += rows * a_stride, c += rows * c_stride) {
        multiply_block<R, rows, vectors>(depth, a, a_stride, b, b_stride, c, c_stride, scale, keep);
        if (ahead) ahead->step();
    }
    if constexpr (rows > 1)
        if (count > 0)
            multiply_rows<R, vectors, rows / 2>(count, depth, a, a_stride, b, b_stride, c, c_stride, scale,
                                                keep, ahead);
}

}  // namespace detail

// C = A B (keep false), or C = scale * C + A B (keep true): the product is summed from zero and added once,
// which keeps a long chain of updates accurate. A [rows, depth], B [depth, columns], C [rows, columns]; whole
// vectors of columns are read and written. C overlaps neither A nor B.
template <class R>
void multiply(int64_t rows, int64_t columns, int64_t depth, const R* a, int64_t a_stride, const R* b,
              int64_t b_stride, R* c, int64_t c_stride, Factor<R> scale, bool keep,
              Prefetch* ahead = nullptr) {
    for (int64_t left = round_up<R>(columns) / kLanes<R>; left > 0;) {
        const int64_t now = std::min(left, kBlockVectors);
        switch (now) {
            case 1:
                detail::multiply_rows<R, 1>(rows, depth, a, a_stride, b, b_stride, c, c_stride, scale, keep,
                                            ahead);
                break;
            case 2:
                detail::multiply_rows<R, 2>(rows, depth, a, a_stride, b, b_stride, c, c_stride, scale, keep,
                                            ahead);
                break;
            case 3:
                detail::multiply_rows<R, 3>(rows, depth, a, a_stride, b, b_stride, c, c_stride, scale, keep,
                                            ahead);
                break;
            default:
                detail::multiply_rows<R, 4>(rows, depth, a, a_stride, b, b_stride, c, c_stride, scale, keep,
                                            ahead);
        }
        left -= now;
        b += now * kLanes<R>;
        c += now * kLanes<R>;
    }
}

namespace detail {

// One step of a transpose: swaps the off-diagonal squares of side `distance` between row pairs.
template <class R, int distance, size_t... lane>
inline void swap_squares(typename VectorOf<R>::value* rows, std::index_sequence<lane...>) {
    constexpr int lanes = kLanes<R>;
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) {
        if (i & distance) continue;
        const auto x = rows[i], y = rows[i + distance];
        rows[i] = __builtin_shufflevector(x, y, (lane & distance ? lane - distance + lanes : lane)...);
        rows[i + distance] =
            __builtin_shufflevector(x, y, (lane & distance ? lane + lanes : lane + distance)...);
    }
}

}  // namespace detail

// to[c, r] = from[r, c] for r < rows, c < columns. Writes zeros at r = rows .. round_up(rows) and anything in
// rows columns .. round_up(columns), which must exist in `to`.
template <class R>
void transpose(int64_t rows, int64_t columns, const R* from, int64_t from_stride, R* to, int64_t to_stride) {
    constexpr int64_t lanes = kLanes<R>;
    constexpr auto all = std::make_index_sequence<lanes>{};
    for (int64_t r = 0; r < rows; r += lanes)
        for (int64_t c = 0; c < columns; c += lanes) {
            typename detail::VectorOf<R>::value square[lanes];
#pragma GCC unroll 16
            for (int64_t i = 0; i < lanes; ++i)
                square[i] = r + i < rows ? detail::load_vector(from + (r + i) * from_stride + c)
                                         : typename detail::VectorOf<R>::value{};
            if constexpr (lanes > 8) detail::swap_squares<R, 8>(square, all);
            if constexpr (lanes > 4) detail::swap_squares<R, 4>(square, all);
            detail::swap_squares<R, 2>(square, all);
            detail::swap_squares<R, 1>(square, all);
#pragma GCC unroll 16
            for (int64_t i = 0; i < lanes; ++i) detail::store_vector(to + (c + i) * to_stride + r, square[i]);
        }
}

}  // namespace levin::kernels::cpu
