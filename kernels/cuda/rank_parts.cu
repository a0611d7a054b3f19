// Arithmetic between collectives: one block per row, one sweep each.
#include "kernels/backends.h"
#include "kernels/cuda/cross_entropy.cuh"

namespace levin::kernels::cuda {

namespace {

// sum_c a[r,c] b[r,c], handed to finish(row, sum).
template <class T, int N, class Finish>
__global__ void __launch_bounds__(kMaxRowThreads)
    row_dot_kernel(int64_t columns, const T* a, int64_t a_stride, const T* b, int64_t b_stride,
                   Finish finish) {
    using A = acc_t<T>;
    const int64_t row = blockIdx.x;
    A sum = 0;
    sweep<N, kVector<T>>(columns, [&](int64_t c, auto n) {
        constexpr int kN = decltype(n)::value;
        const auto x = load<kN>(a + row * a_stride + c);
        const auto y = load<kN>(b + row * b_stride + c);
#pragma unroll
        for (int i = 0; i < kN; ++i) sum += x[i] * y[i];
    });
    sum = block_sum(sum);
    if (threadIdx.x == 0) finish(row, sum);
}

template <class T, class Finish>
void row_dot(cudaStream_t s, int64_t rows, int64_t columns, const void* a, int64_t a_stride, const void* b,
             int64_t b_stride, const Finish& finish) {
    if (rows <= 0) return;
    const bool vector = vectorizable<T>({{a, a_stride}, {b, b_stride}});
    auto* kernel = vector ? row_dot_kernel<T, kVector<T>, Finish> : row_dot_kernel<T, 1, Finish>;
    kernel<<<static_cast<unsigned>(rows), row_threads<T>(columns), 0, s>>>(
        columns, static_cast<const T*>(a), a_stride, static_cast<const T*>(b), b_stride, finish);
    LEVIN_CUDA_LAUNCHED();
}

template <class A>
struct KeepSum {
    A* sum;
    __device__ void operator()(int64_t row, A value) const { sum[row] = value; }
};
template <class A>
struct KeepCoefficient {
    const A* factor;
    A* coefficient;
    A width;
    __device__ void operator()(int64_t row, A value) const {
        coefficient[row] = -factor[row] * factor[row] * (value / width);
    }
};

template <class A>
struct FactorOp {
    const A* sum;
    A* factor;
    A width, eps;
    template <int N>
    __device__ void apply(int64_t, int64_t c) const {
#pragma unroll
        for (int i = 0; i < N; ++i) factor[c + i] = A(1) / sqrt(sum[c + i] / width + eps);
    }
};

template <class T>
struct RowScaleOp {
    const acc_t<T>* factor;
    const T* x;
    int64_t x_stride;
    acc_t<T> beta;
    T* y;
    int64_t y_stride;
    template <int N>
    __device__ void apply(int64_t r, int64_t c) const {
        auto value = load<N>(x + r * x_stride + c);
        const acc_t<T> f = factor[r];
#pragma unroll
        for (int i = 0; i < N; ++i) value[i] *= f;
        if (beta != acc_t<T>(0)) {
            const auto old = load<N>(y + r * y_stride + c);
#pragma unroll
            for (int i = 0; i < N; ++i) value[i] += beta * old[i];
        }
        store<N>(y + r * y_stride + c, value);
    }
};

constexpr int kLossThreads = 1024;

template <class T, int N>
__global__ void __launch_bounds__(kLossThreads) cross_entropy_parts_kernel(CrossEntropyParts args) {
    using A = acc_t<T>;
    const int64_t row = blockIdx.x;
    const T* logits = static_cast<const T*>(args.logits) + row * args.stride;
    const SoftmaxSum<A> sum = softmax_sum<T, N>(logits, args.vocab);
    if (threadIdx.x != 0) return;
    const int64_t target = args.targets[row], place = target < 0 ? -1 : target - args.first;
    A* part = static_cast<A*>(args.parts) + 3 * row;
    part[0] = sum.most;
    part[1] = sum.total;
    part[2] = place >= 0 && place < args.vocab ? to_acc(logits[place]) : A(0);
}

template <class T, int N>
__global__ void __launch_bounds__(kLossThreads) cross_entropy_join_kernel(CrossEntropyJoin args) {
    using A = acc_t<T>;
    const int64_t row = blockIdx.x, target = args.targets[row];
    T* logits = static_cast<T*>(args.logits) + row * args.stride;
    A* loss = static_cast<A*>(args.loss);
    if (target < 0) {
        if (threadIdx.x == 0) loss[row] = A(0);
        if (args.gradient_scale != 0) clear_row<T, N>(logits, args.stride);
        return;
    }
    // Every thread joins the few parts for itself, in rank order.
    const auto part = [&](int64_t p) {
        return static_cast<const A*>(args.parts) + 3 * (p * args.rows + row);
    };
    A at_target = 0;
    for (int64_t p = 0; p < args.ranks; ++p) at_target += part(p)[2];
    const RowLoss<T> result(join<A>(args.ranks,
                                    [&](int64_t p) {
                                        return SoftmaxSum<A>{part(p)[0], part(p)[1]};
                                    }),
                            args.z_loss, args.gradient_scale);
    if (threadIdx.x == 0) loss[row] = result.loss(at_target);
    if (args.gradient_scale == 0) return;
    write_gradient<T, N>(result, logits, args.vocab, args.stride, target - args.first);
}

constexpr int kPartsAtOnce = 32;
struct Distances {
    int64_t of[kPartsAtOnce];
};

template <class A>
struct StateSumOp {
    const A* states;
    A* out;
    const float* slopes;
    int64_t heads, elements, each, parts;
    Distances distance;
    bool add;
    template <int N>
    __device__ void apply(int64_t r, int64_t c) const {
        const double slope = static_cast<double>(slopes[r % heads]);
        Pack<A, N> sum{};
        if (add) sum = load<N>(out + r * elements + c);
        for (int64_t p = 0; p < parts; ++p) {
            if (distance.of[p] < 0) continue;
            const A decay = static_cast<A>(exp(-slope * static_cast<double>(distance.of[p])));
            const auto state = load<N>(states + p * each + r * elements + c);
#pragma unroll
            for (int i = 0; i < N; ++i) sum[i] += decay * state[i];
        }
        store<N>(out + r * elements + c, sum);
    }
};

}  // namespace

void row_squares(const Stream& stream, const RowSquares& args) {
    const cudaStream_t s = use(stream);
    by_type(args.dtype, "row_squares", [&](auto tag) {
        using T = typename decltype(tag)::type;
        row_dot<T>(s, args.rows, args.columns, args.x, args.x_stride, args.x, args.x_stride,
                   KeepSum<acc_t<T>>{static_cast<acc_t<T>*>(args.sum)});
    });
}

void rms_factor(const Stream& stream, const RmsFactor& args) {
    const cudaStream_t s = use(stream);
    const auto run = [&](auto number) {
        using A = decltype(number);
        map_flat<A>(s, args.rows, vectorizable<A>({{args.sum, 0}, {args.factor, 0}}),
                    FactorOp<A>{static_cast<const A*>(args.sum), static_cast<A*>(args.factor),
                                static_cast<A>(args.width), static_cast<A>(args.eps)});
    };
    args.acc == DType::f64 ? run(double{}) : run(float{});
}

void rms_factor_gradient(const Stream& stream, const RmsFactorGradient& args) {
    const cudaStream_t s = use(stream);
    by_type(args.dtype, "rms_factor_gradient", [&](auto tag) {
        using T = typename decltype(tag)::type;
        using A = acc_t<T>;
        row_dot<T>(s, args.rows, args.columns, args.dy, args.dy_stride, args.y, args.y_stride,
                   KeepCoefficient<A>{static_cast<const A*>(args.factor), static_cast<A*>(args.coefficient),
                                      static_cast<A>(args.width)});
    });
}

void row_scale(const Stream& stream, const RowScale& args) {
    const cudaStream_t s = use(stream);
    by_type(args.dtype, "row_scale", [&](auto tag) {
        using T = typename decltype(tag)::type;
        map_rows<T>(s, args.rows, args.columns,
                    vectorizable<T>({{args.x, args.x_stride}, {args.y, args.y_stride}}),
                    RowScaleOp<T>{static_cast<const acc_t<T>*>(args.factor), static_cast<const T*>(args.x),
                                  args.x_stride, static_cast<acc_t<T>>(args.beta), static_cast<T*>(args.y),
                                  args.y_stride});
    });
}

void cross_entropy_parts(const Stream& stream, const CrossEntropyParts& args) {
    const cudaStream_t s = use(stream);
    if (args.rows <= 0) return;
    by_type(args.dtype, "cross_entropy_parts", [&](auto tag) {
        using T = typename decltype(tag)::type;
        const bool vector = vectorizable<T>({{args.logits, args.stride}});
        auto* kernel = vector ? cross_entropy_parts_kernel<T, kVector<T>> : cross_entropy_parts_kernel<T, 1>;
        kernel<<<static_cast<unsigned>(args.rows), kLossThreads, 0, s>>>(args);
        LEVIN_CUDA_LAUNCHED();
    });
}

void cross_entropy_join(const Stream& stream, const CrossEntropyJoin& args) {
    const cudaStream_t s = use(stream);
    if (args.rows <= 0) return;
    by_type(args.dtype, "cross_entropy_join", [&](auto tag) {
        using T = typename decltype(tag)::type;
        const bool vector = vectorizable<T>({{args.logits, args.stride}});
        auto* kernel = vector ? cross_entropy_join_kernel<T, kVector<T>> : cross_entropy_join_kernel<T, 1>;
        kernel<<<static_cast<unsigned>(args.rows), kLossThreads, 0, s>>>(args);
        LEVIN_CUDA_LAUNCHED();
    });
}

void state_sum(const Stream& stream, const StateSum& args) {
    const cudaStream_t s = use(stream);
    const int64_t each = args.sequences * args.heads * args.elements;
    const auto run = [&](auto number) {
        using A = decltype(number);
        for (int64_t start = 0; start == 0 || start < args.parts; start += kPartsAtOnce) {
            StateSumOp<A> op{static_cast<const A*>(args.states) + start * each,
                             static_cast<A*>(args.out),
                             args.slopes,
                             args.heads,
                             args.elements,
                             each,
                             args.parts - start < kPartsAtOnce ? args.parts - start : int64_t{kPartsAtOnce},
                             {},
                             start > 0};
            for (int64_t p = 0; p < op.parts; ++p) op.distance.of[p] = args.distance[start + p];
            map_rows<A>(s, args.sequences * args.heads, args.elements,
                        args.elements % kVector<A> == 0 && vectorizable<A>({{args.states, 0}, {args.out, 0}}),
                        op);
        }
    };
    args.acc == DType::f64 ? run(double{}) : run(float{});
}

}  // namespace levin::kernels::cuda
