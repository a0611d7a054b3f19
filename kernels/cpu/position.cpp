// LRPE and RoPE as passes of their own. Work is cut into blocks of positions: the angles of a block are made
// once and serve all batch rows that the task holds.
#include <cmath>
#include <vector>

#include "kernels/backends.h"
#include "kernels/cpu/activation.h"
#include "kernels/cpu/rotation.h"

namespace levin::kernels::cpu {
namespace {

// Finding the first angle of a block costs about as much as turning through a dozen of positions.
constexpr int64_t kPositions = 128;

// Cosine and sine of one position after the other, in arithmetic type.
template <class R>
class AngleRow {
public:
    template <class F>
    AngleRow(Scratch& scratch, const F* frequency, int64_t count, int64_t position)
        : count_(count),
          rotation_(scratch, frequency, count),
          cos_(scratch.take<R>(count)),
          sin_(scratch.take<R>(count)) {
        rotation_.seek(position);
        copy();
    }
    void next() {
        rotation_.step(1);
        copy();
    }
    const R* cos() const { return cos_; }
    const R* sin() const { return sin_; }

private:
    void copy() {
        for (int64_t c = 0; c < count_; ++c) {
            cos_[c] = static_cast<R>(rotation_.cos()[c]);
            sin_[c] = static_cast<R>(rotation_.sin()[c]);
        }
    }
    int64_t count_;
    Rotation rotation_;
    R *cos_, *sin_;
};

int64_t blocks_of(int64_t length) { return (length + kPositions - 1) / kPositions; }

void check_shape(const char* what, int64_t tokens, int64_t length, int64_t heads, int64_t head_dim) {
    LEVIN_CHECK(
        tokens >= 0 && heads > 0 && head_dim > 0 && (tokens == 0 || (length > 0 && tokens % length == 0)),
        what,
        "tokens {} length {} heads {} head_dim {}, expected positive sizes and tokens a multiple of length",
        tokens, length, heads, head_dim);
}

template <class T>
void lrpe_forward_block(const LrpeForward& args, int64_t head, int64_t first) {
    using R = arithmetic_t<T>;
    const int64_t dim = args.head_dim, last = std::min(args.length, first + kPositions);
    AngleRow<R> angles(Scratch::fresh(), static_cast<const R*>(args.theta) + head * dim, dim,
                       args.first_position + first);
    for (int64_t t = first; t < last; ++t, angles.next())
        for (int64_t token = t; token < args.tokens; token += args.length) {
            const T* x = static_cast<const T*>(args.x) + token * args.x_stride + head * dim;
            T* __restrict y = static_cast<T*>(args.y) + (token * args.heads + head) * 2 * dim;
            const R *co = angles.cos(), *si = angles.sin();
            for (int64_t c = 0; c < dim; ++c) y[c] = narrow<T>(load(x[c]) * co[c]);
            for (int64_t c = 0; c < dim; ++c) y[dim + c] = narrow<T>(load(x[c]) * si[c]);
        }
}

template <class T>
void lrpe_backward_block(const LrpeBackward& args, int64_t head, int64_t first, double* dtheta) {
    using R = arithmetic_t<T>;
    const int64_t dim = args.head_dim, last = std::min(args.length, first + kPositions);
    AngleRow<R> angles(Scratch::fresh(), static_cast<const R*>(args.theta) + head * dim, dim,
                       args.first_position + first);
    for (int64_t t = first; t < last; ++t, angles.next())
        for (int64_t token = t; token < args.tokens; token += args.length) {
            const T* x = static_cast<const T*>(args.x) + token * args.x_stride + head * dim;
            const T* dy = static_cast<const T*>(args.dy) + (token * args.heads + head) * 2 * dim;
            T* __restrict dx = static_cast<T*>(args.dx) + token * args.dx_stride + head * dim;
            const R *co = angles.cos(), *si = angles.sin();
            const double time = static_cast<double>(args.first_position + t);
            for (int64_t c = 0; c < dim; ++c) {
                const R d_cos = load(dy[c]), d_sin = load(dy[dim + c]);
                dtheta[c] += time * (load(x[c]) * (d_sin * co[c] - d_cos * si[c]));
                dx[c] = narrow<T>(d_cos * co[c] + d_sin * si[c]);
            }
        }
}

template <class T>
void rope_block(const Rope& args, const double* frequency, int64_t first, int64_t first_row,
                int64_t end_row) {
    using R = arithmetic_t<T>;
    const int64_t half = args.head_dim / 2, last = std::min(args.length, first + kPositions);
    AngleRow<R> angles(Scratch::fresh(), frequency, half, args.first_position + first);
    const R sign = args.inverse ? R(-1) : R(1);
    for (int64_t t = first; t < last; ++t, angles.next())
        for (int64_t row = first_row; row < end_row; ++row)
            for (int64_t head = 0; head < args.heads; ++head) {
                const int64_t token = row * args.length + t;
                const T* x = static_cast<const T*>(args.x) + token * args.x_stride + head * args.head_dim;
                T* y = static_cast<T*>(args.y) + token * args.y_stride + head * args.head_dim;
                const R *co = angles.cos(), *si = angles.sin();
#pragma omp simd  // y may be x: then each pair is read before it is written
                for (int64_t c = 0; c < half; ++c) {
                    const R a = load(x[c]), b = load(x[half + c]);
                    y[c] = narrow<T>(a * co[c] - sign * b * si[c]);
                    y[half + c] = narrow<T>(b * co[c] + sign * a * si[c]);
                }
            }
}

}  // namespace

void lrpe_forward(const LrpeForward& args) {
    check_shape("lrpe_forward", args.tokens, args.length, args.heads, args.head_dim);
    if (args.tokens == 0) return;
    const double work = 8.0 * static_cast<double>(args.tokens * args.heads * args.head_dim);
    with_floating(args.dtype, [&](auto tag) {
        for_each_task(blocks_of(args.length) * args.heads, work, [&](int64_t task) {
            lrpe_forward_block<typename decltype(tag)::type>(args, task % args.heads,
                                                             task / args.heads * kPositions);
        });
    });
}

void lrpe_backward(const LrpeBackward& args) {
    check_shape("lrpe_backward", args.tokens, args.length, args.heads, args.head_dim);
    const double work = 16.0 * static_cast<double>(args.tokens * args.heads * args.head_dim);
    with_floating(args.dtype, [&](auto tag) {
        using T = typename decltype(tag)::type;
        using R = arithmetic_t<T>;
        const int64_t width = args.heads * args.head_dim,
                      blocks = args.tokens > 0 ? blocks_of(args.length) : 0;
        std::vector<double> parts(static_cast<size_t>(blocks * width), 0.0);
        for_each_task(blocks * args.heads, work, [&](int64_t task) {
            const int64_t head = task % args.heads, block = task / args.heads;
            lrpe_backward_block<T>(args, head, block * kPositions,
                                   parts.data() + block * width + head * args.head_dim);
        });
        if (!args.dtheta) return;
        for (int64_t c = 0; c < width; ++c) {
            double sum = 0;
            for (int64_t block = 0; block < blocks; ++block)
                sum += parts[static_cast<size_t>(block * width + c)];
            R& out = static_cast<R*>(args.dtheta)[c];
            out = static_cast<R>(args.beta == 0 ? sum : args.beta * static_cast<double>(out) + sum);
        }
    });
}

void rope(const Rope& args) {
    check_shape("rope", args.tokens, args.length, args.heads, args.head_dim);
    LEVIN_CHECK(args.head_dim % 2 == 0, "rope", "head_dim is {}, expected an even number", args.head_dim);
    if (args.tokens == 0) return;
    const int64_t half = args.head_dim / 2, rows = args.tokens / args.length;
    std::vector<double> frequency(static_cast<size_t>(half));
    for (int64_t c = 0; c < half; ++c)
        frequency[static_cast<size_t>(c)] =
            std::pow(args.base, -2.0 * static_cast<double>(c) / static_cast<double>(args.head_dim));
    // Short rows (decoding) share their angles; long ones are tasks of their own.
    const int64_t rows_of_task = std::max<int64_t>(1, kPositions / args.length);
    const int64_t groups = (rows + rows_of_task - 1) / rows_of_task;
    const double work = 8.0 * static_cast<double>(args.tokens * args.heads * args.head_dim);
    with_floating(args.dtype, [&](auto tag) {
        for_each_task(blocks_of(args.length) * groups, work, [&](int64_t task) {
            const int64_t first_row = task % groups * rows_of_task;
            rope_block<typename decltype(tag)::type>(args, frequency.data(), task / groups * kPositions,
                                                     first_row, std::min(rows, first_row + rows_of_task));
        });
    });
}

}  // namespace levin::kernels::cpu
