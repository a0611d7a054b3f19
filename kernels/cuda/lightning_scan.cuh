// Lightning attention in tiles, for every type and option: the kernel that all others are checked against.
//
// One scan does the forward pass and each of the three gradients (arXiv 2405.17381, SPEC section 2). With
// rows r, c of a tile of m tokens and lambda = exp(-slope):
//   Out = [(X Y^T) . M] Z + D X S,   M[r,c] = lambda^(r-c) for r >= c      S = lambda^m S + (E Y)^T Z
//            X    Y    Z    Out  S           order     D[r]           E[r]
//   o        q    k    v    o    KV          forward   lambda^(r+1)   lambda^(m-1-r)
//   dq       do   v    k    dq   KV^T        forward   lambda^(r+1)   lambda^(m-1-r)
//   dk       v    do   q    dk   dKV^T       backward  lambda^r       lambda^(m-r)
//   dv       k    q    do   dv   dKV         backward  lambda^r       lambda^(m-r)
// "backward" counts the rows of a tile, and the tiles, from the end of the sequence. Activations and LRPE are
// applied when a tile is read, their derivatives when the gradient is written. A block owns one head of one
// sequence and a slice of the columns of Z, Out and S, so no two blocks add into one number.
#pragma once

#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/rotation.cuh"
#include "kernels/cuda/row.cuh"

namespace levin::kernels::cuda {

constexpr int kScanThreads = 256;
constexpr int kScanColumns = 32;  // columns of Z, Out and S that a block owns
constexpr int kMaxInner = 256;
template <class A>
constexpr int kScanTile = sizeof(A) == 8 ? 16 : 32;  // tokens of a tile

// Raw rows [token, heads, width] in memory and what is done to them on the way in.
template <class T>
struct ScanOperand {
    const T* data = nullptr;
    int64_t stride = 0;
    int width = 0;
    Activation activation = Activation::none;
};

template <class T>
struct ScanArgs {
    using A = acc_t<T>;
    ScanOperand<T> x, y, z;
    ScanOperand<T> source;  // raw values whose gradient Out is; data == nullptr: Out is written as it is
    T* out;                 // nullptr: only the state is wanted
    int64_t out_stride;
    bool rotate_inner;    // LRPE on x and y
    bool rotate_columns;  // LRPE on z and source
    bool reverse;
    int inner;          // width of x and y with LRPE
    int64_t state_row;  // strides of S[inner, column] inside a state in memory, and the size of one state
    int64_t state_column, state_size;
    const A* initial;
    A* final;
    const A* theta;  // [heads, key_dim]
    double* dtheta;  // [sequences, heads, key_dim]: this scan's share, or nullptr
    const float* slopes;
    int64_t heads, length, first_position;
    const int32_t* cu_seqlens;
};

template <class A>
struct ScanShared {
    static constexpr int kC = kScanTile<A>, kB = kScanColumns, kPad = 16 / static_cast<int>(sizeof(A));
    static constexpr int kColumnStride = kB + kPad, kSquareStride = kC + kPad;
    A *x, *y, *z, *square, *state, *out, *powers;
    int inner_stride;
    __host__ __device__ static int padded(int inner) { return (inner + 3) / 4 * 4; }
    __host__ __device__ static size_t bytes(int inner) {
        return sizeof(A) * (2 * kC * (padded(inner) + kPad) + 2 * kC * kColumnStride + kC * kSquareStride +
                            padded(inner) * kColumnStride + kC + 4);
    }
    __device__ ScanShared(A* memory, int inner) : inner_stride(padded(inner) + kPad) {
        x = memory;
        y = x + kC * inner_stride;
        z = y + kC * inner_stride;
        out = z + kC * kColumnStride;
        square = out + kC * kColumnStride;
        state = square + kC * kSquareStride;
        powers = state + padded(inner) * kColumnStride;
    }
};

// The tile in hand: rows row 0 .. count of the scan's order.
struct ScanTileRows {
    int64_t first;     // token of row 0
    int64_t position;  // position of row 0
    int step, count;   // +1 or -1; rows
};

// Columns begin .. begin + count of a head's raw row; with LRPE the sine half goes `second` columns further.
struct ScanSlice {
    int begin, count, second;
};

template <class T>
__device__ inline acc_t<T> exp_shift(const ScanOperand<T>& operand, const T* row) {
    if (operand.activation != Activation::exp) return 0;
    acc_t<T> top = -INFINITY;
    for (int c = threadIdx.x % 32; c < operand.width; c += 32) top = max(top, to_acc(row[c]));
    return warp_max(top);
}

// tile[r, 0 .. columns) = the slice, activated and position encoded; zero where there is no token or no
// column. One warp per row.
template <class T, int C>
__device__ inline void load_tile(const ScanOperand<T>& operand, int64_t head, const ScanTileRows& rows,
                                 ScanSlice slice, bool rotate, const acc_t<T>* theta, acc_t<T>* tile,
                                 int stride, int columns) {
    using A = acc_t<T>;
    for (int r = threadIdx.x / 32; r < C; r += kScanThreads / 32) {
        A* to = tile + r * stride;
        if (r >= rows.count) {
            for (int j = threadIdx.x % 32; j < columns; j += 32) to[j] = A(0);
            continue;
        }
        const T* row = operand.data + (rows.first + rows.step * r) * operand.stride + head * operand.width;
        const A shift = exp_shift(operand, row);
        for (int j = threadIdx.x % 32; j < columns; j += 32) {
            const bool sine_half = rotate && j >= slice.second;
            const int c = sine_half ? j - slice.second : j;
            A value = 0;
            if (c < slice.count) {
                value = activate(operand.activation, to_acc(row[slice.begin + c]), shift);
                if (rotate) {
                    A sine, cosine;
                    sine_cosine(theta[slice.begin + c], rows.position + rows.step * r, &sine, &cosine);
                    value *= sine_half ? sine : cosine;
                }
            }
            to[j] = value;
        }
    }
}

// Writes the tile of Out, through LRPE and activation backwards where it is a gradient. Adds to `dtheta`, of
// this thread's column.
template <class T>
__device__ inline void store_tile(const ScanArgs<T>& args, int64_t head, const ScanTileRows& rows,
                                  ScanSlice slice, const acc_t<T>* theta, const acc_t<T>* tile, int stride,
                                  double* dtheta) {
    using A = acc_t<T>;
    const int width = args.source.data ? args.source.width : args.z.width;
    for (int r = threadIdx.x / 32; r < rows.count; r += kScanThreads / 32) {
        const int64_t token = rows.first + rows.step * r;
        const A* from = tile + r * stride;
        T* to = args.out + token * args.out_stride + head * width + slice.begin;
        const T* source =
            args.source.data ? args.source.data + token * args.source.stride + head * width : nullptr;
        const A shift = source ? exp_shift(args.source, source) : A(0);
        for (int c = threadIdx.x % 32; c < slice.count; c += 32) {
            A value = from[c];
            const A raw = source ? to_acc(source[slice.begin + c]) : A(0);
            if (args.rotate_columns) {
                const int64_t position = rows.position + rows.step * r;
                const A other = from[slice.second + c];
                A sine, cosine;
                sine_cosine(theta[slice.begin + c], position, &sine, &cosine);
                const double turn = static_cast<double>(other) * cosine - static_cast<double>(value) * sine;
                *dtheta +=
                    static_cast<double>(position) * activate(args.source.activation, raw, shift) * turn;
                value = value * cosine + other * sine;
            }
            if (source) value *= derivative(args.source.activation, raw, shift);
            to[c] = from_acc<T>(value);
        }
    }
}

// state = decay * state + product, as the unevaluated sum of two numbers: a state may be a sum over a million
// tokens, each tile of which rounds the decay and the sum the same way.
template <class A>
struct TwoNumbers {
    A high, low;
};
__device__ inline void advance(float& high, float& low, TwoNumbers<float> decay, float product) {
    const float scaled = __fmul_rn(decay.high, high), scaled_rest = __fmaf_rn(decay.high, high, -scaled);
    const float sum = __fadd_rn(scaled, product), part = __fsub_rn(sum, scaled);
    const float sum_rest = __fadd_rn(__fsub_rn(scaled, __fsub_rn(sum, part)), __fsub_rn(product, part));
    low = __fmaf_rn(decay.high, low, __fmaf_rn(decay.low, high, scaled_rest + sum_rest));
    high = __fadd_rn(sum, low);
    low = __fsub_rn(low, __fsub_rn(high, sum));
}
__device__ inline void advance(double& high, double&, TwoNumbers<double> decay, double product) {
    high = decay.high * high + product;
}

template <class T>
__global__ void __launch_bounds__(kScanThreads)
    lightning_scan_kernel(const __grid_constant__ ScanArgs<T> args) {
    using A = acc_t<T>;
    using Shared = ScanShared<A>;
    constexpr int kC = Shared::kC, kB = Shared::kB, kColumnStride = Shared::kColumnStride,
                  kSquareStride = Shared::kSquareStride;
    constexpr int kR = kC / 16, kV = 16 / sizeof(A);
    extern __shared__ __align__(16) unsigned char memory[];
    const Shared shared(reinterpret_cast<A*>(memory), args.inner);
    const int inner = Shared::padded(args.inner), inner_stride = shared.inner_stride;
    const int64_t sequence = blockIdx.x / args.heads, head = blockIdx.x % args.heads;
    const int64_t begin = args.cu_seqlens ? args.cu_seqlens[sequence] : sequence * args.length;
    const int64_t end = args.cu_seqlens ? args.cu_seqlens[sequence + 1] : begin + args.length;
    const int64_t row_begin = args.cu_seqlens ? 0 : begin;  // where positions count from
    const int tid = threadIdx.x, ty = tid / 16, tx = tid % 16;

    // This block's columns: kB of them, or with LRPE the cosine and the sine half of kB / 2.
    ScanSlice slice;
    const int raw_columns = args.rotate_columns ? kB / 2 : kB;
    slice.second = args.rotate_columns ? kB / 2 : 0;
    slice.begin = blockIdx.y * raw_columns;
    slice.count = min(raw_columns, args.z.width - slice.begin);
    const ScanSlice whole{0, args.x.width, args.x.width};
    const A* theta =
        args.theta ? args.theta + head * (args.rotate_inner ? args.x.width : args.z.width) : nullptr;
    const auto state_index = [&](int a, int j) {  // -1: a padding element
        const bool sine_half = args.rotate_columns && j >= slice.second;
        const int c = sine_half ? j - slice.second : j;
        if (a >= args.inner || c >= slice.count) return int64_t{-1};
        return int64_t{blockIdx.x} * args.state_size + a * args.state_row +
               (slice.begin + c + (sine_half ? args.z.width : 0)) * args.state_column;
    };

    for (int i = tid; i < inner * kB; i += kScanThreads) {
        const int64_t index = args.initial ? state_index(i / kB, i % kB) : -1;
        shared.state[i / kB * kColumnStride + i % kB] = index >= 0 ? args.initial[index] : A(0);
    }
    const double slope = args.slopes[head];
    if (tid <= kC) shared.powers[tid] = static_cast<A>(exp(-slope * tid));
    constexpr int kBlocks =
        kMaxInner / 4 * (kB / 4) / kScanThreads;  // blocks of the state that a thread owns
    A rest[kBlocks][4][4] = {};                   // low parts of the state
    const int out_shift = args.reverse ? 0 : 1;
    double dtheta = 0;

    for (int64_t done = 0; done < end - begin; done += kC) {
        ScanTileRows rows;
        rows.count = static_cast<int>(min(int64_t{kC}, end - begin - done));
        rows.step = args.reverse ? -1 : 1;
        rows.first = args.reverse ? end - 1 - done : begin + done;
        rows.position = args.first_position + rows.first - row_begin;
        const int m = rows.count;
        load_tile<T, kC>(args.x, head, rows, whole, args.rotate_inner, theta, shared.x, inner_stride, inner);
        load_tile<T, kC>(args.y, head, rows, whole, args.rotate_inner, theta, shared.y, inner_stride, inner);
        load_tile<T, kC>(args.z, head, rows, slice, args.rotate_columns, theta, shared.z, kColumnStride, kB);
        __syncthreads();

        // Square = (X Y^T) . M; rows ty + 16 i, columns tx + 16 j of this thread. And the carried part D X S.
        A square[kR][kR] = {}, out[kR][2] = {};
        for (int a = 0; a < inner; a += kV) {
            Raw<A, kV> x[kR], y[kR];
#pragma unroll
            for (int i = 0; i < kR; ++i) {
                x[i] = *reinterpret_cast<const Raw<A, kV>*>(shared.x + (ty + 16 * i) * inner_stride + a);
                y[i] = *reinterpret_cast<const Raw<A, kV>*>(shared.y + (tx + 16 * i) * inner_stride + a);
            }
#pragma unroll
            for (int v = 0; v < kV; ++v) {
                const A s0 = shared.state[(a + v) * kColumnStride + tx],
                        s1 = shared.state[(a + v) * kColumnStride + tx + 16];
#pragma unroll
                for (int i = 0; i < kR; ++i) {
                    out[i][0] += x[i].v[v] * s0;
                    out[i][1] += x[i].v[v] * s1;
#pragma unroll
                    for (int j = 0; j < kR; ++j) square[i][j] += x[i].v[v] * y[j].v[v];
                }
            }
        }
#pragma unroll
        for (int i = 0; i < kR; ++i) {
            const int r = ty + 16 * i;
            const A decay = shared.powers[r + out_shift];
            out[i][0] *= decay;
            out[i][1] *= decay;
#pragma unroll
            for (int j = 0; j < kR; ++j) {
                const int c = tx + 16 * j;
                shared.square[r * kSquareStride + c] = r >= c ? square[i][j] * shared.powers[r - c] : A(0);
            }
        }
        __syncthreads();

        for (int c = 0; c < m; ++c) {
            const A z0 = shared.z[c * kColumnStride + tx], z1 = shared.z[c * kColumnStride + tx + 16];
#pragma unroll
            for (int i = 0; i < kR; ++i) {
                const A p = shared.square[(ty + 16 * i) * kSquareStride + c];
                out[i][0] += p * z0;
                out[i][1] += p * z1;
            }
        }
#pragma unroll
        for (int i = 0; i < kR; ++i) {
            shared.out[(ty + 16 * i) * kColumnStride + tx] = out[i][0];
            shared.out[(ty + 16 * i) * kColumnStride + tx + 16] = out[i][1];
        }

        // S = lambda^m S + (E Y)^T Z: 4 x 4 elements a thread, the product formed from zero, then one
        // addition.
        const double exact = exp(-slope * m);
        const TwoNumbers<A> decay{static_cast<A>(exact), static_cast<A>(exact - static_cast<A>(exact))};
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) {
            const int i = tid + block * kScanThreads, a = i / (kB / 4) * 4, b = i % (kB / 4) * 4;
            if (a >= inner) continue;
            A product[4][4] = {};
            for (int c = 0; c < m; ++c) {
                const auto y = *reinterpret_cast<const Raw<A, 4>*>(shared.y + c * inner_stride + a);
                const auto z = *reinterpret_cast<const Raw<A, 4>*>(shared.z + c * kColumnStride + b);
                const A weight = shared.powers[m - out_shift - c];
#pragma unroll
                for (int k = 0; k < 4; ++k)
#pragma unroll
                    for (int l = 0; l < 4; ++l) product[k][l] += weight * y.v[k] * z.v[l];
            }
#pragma unroll
            for (int k = 0; k < 4; ++k)
#pragma unroll
                for (int l = 0; l < 4; ++l)
                    advance(shared.state[(a + k) * kColumnStride + b + l], rest[block][k][l], decay,
                            product[k][l]);
        }
        __syncthreads();
        if (args.out) store_tile(args, head, rows, slice, theta, shared.out, kColumnStride, &dtheta);
    }
    __syncthreads();

    if (args.final)
        for (int i = tid; i < inner * kB; i += kScanThreads) {
            const int64_t index = state_index(i / kB, i % kB);
            if (index >= 0) args.final[index] = shared.state[i / kB * kColumnStride + i % kB];
        }
    if (args.dtheta) {
        // A lane has one column (kB / 2 of them), a warp some of the rows: warps in order.
        __shared__ double partial[kScanThreads / 32][kB / 2];
        if (tid % 32 < kB / 2) partial[tid / 32][tid % 32] = dtheta;
        __syncthreads();
        if (tid < slice.count) {
            double sum = 0;
            for (int w = 0; w < kScanThreads / 32; ++w) sum += partial[w][tid];
            args.dtheta[int64_t{blockIdx.x} * args.z.width + slice.begin + tid] = sum;
        }
    }
}

template <class T>
void launch_scan(const Stream& stream, int64_t sequences, const ScanArgs<T>& args) {
    const cudaStream_t s = use(stream);
    const int64_t chains = sequences * args.heads;
    if (chains <= 0) return;
    const size_t bytes = ScanShared<acc_t<T>>::bytes(args.inner);
    if (bytes > max_shared_memory(stream.device.index))
        fail_arguments("lightning attention",
                       "head width too large for this GPU's shared memory (at most 256)", args.inner);
    LEVIN_CUDA_CHECK(cudaFuncSetAttribute(
        lightning_scan_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
    const int64_t columns = args.rotate_columns ? kScanColumns / 2 : kScanColumns;
    const dim3 grid(static_cast<unsigned>(chains), static_cast<unsigned>(ceil_div(args.z.width, columns)));
    lightning_scan_kernel<T><<<grid, kScanThreads, bytes, s>>>(args);
    LEVIN_CUDA_LAUNCHED();
}

}  // namespace levin::kernels::cuda
