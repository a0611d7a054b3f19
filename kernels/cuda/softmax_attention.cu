// Causal softmax attention in tiles with an online softmax (arXiv 2205.14135), for every type: plain fused
// multiply-adds. Forward and the gradient of q own a tile of queries, the gradients of k and v a tile of
// keys, so that no two blocks add into one number.
#include "kernels/backends.h"
#include "kernels/cuda/cudnn_attention.h"
#include "kernels/cuda/row.cuh"

namespace levin::kernels::cuda {

namespace {

constexpr int kThreads = 256;  // 16 x 16: thread (ty, tx) has rows ty + 16 i and columns tx + 16 j of a tile
template <class A>
constexpr int kTile = sizeof(A) == 8 ? 16 : 32;

// Which keys a query may see: begin .. end.
struct Visible {
    int64_t begin, end;
};
__device__ inline int64_t document_of(const SoftmaxAttentionShape& shape, int64_t token) {
    int64_t low = 0, high = shape.documents - 1;  // the last document that begins at or before the token
    while (low < high) {
        const int64_t middle = (low + high + 1) / 2;
        if (shape.cu_seqlens[middle] <= token)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}
__device__ inline Visible visible_keys(const SoftmaxAttentionShape& shape, int64_t query) {
    const int64_t begin = shape.cu_seqlens ? shape.cu_seqlens[document_of(shape, query)] : 0;
    const int64_t end = query + shape.key_length - shape.query_length + 1;
    return {begin, end < begin ? begin : end};
}

// tile[r, 0 .. head_dim) of rows first .. first + count; zero below.
template <class T, int C>
__device__ inline void load_rows(const T* data, int64_t stride, int64_t first, int64_t count, int head_dim,
                                 acc_t<T>* tile, int tile_stride) {
    for (int r = threadIdx.x / 32; r < C; r += kThreads / 32)
        for (int c = threadIdx.x % 32; c < head_dim; c += 32)
            tile[r * tile_stride + c] = r < count ? to_acc(data[(first + r) * stride + c]) : acc_t<T>(0);
}

// out[i][j] = a[row] . b[column]
template <int R, class A>
__device__ inline void dot_tile(const A* a, const A* b, int stride, int head_dim, int ty, int tx,
                                A (&out)[R][R]) {
#pragma unroll
    for (int i = 0; i < R; ++i)
#pragma unroll
        for (int j = 0; j < R; ++j) out[i][j] = A(0);
    for (int d = 0; d < head_dim; ++d) {
        A left[R], right[R];
#pragma unroll
        for (int i = 0; i < R; ++i) {
            left[i] = a[(ty + 16 * i) * stride + d];
            right[i] = b[(tx + 16 * i) * stride + d];
        }
#pragma unroll
        for (int i = 0; i < R; ++i)
#pragma unroll
            for (int j = 0; j < R; ++j) out[i][j] += left[i] * right[j];
    }
}

// sum[i][k] += square[row, .] x[., column tx + 16 k]; `square` is C x C.
template <int R, int COLUMNS, class A>
__device__ inline void add_product(const A* square, const A* x, int stride, int head_dim, int ty, int tx,
                                   A (&sum)[R][COLUMNS]) {
    constexpr int kC = 16 * R;
    for (int c = 0; c < kC; ++c) {
        A left[R];
#pragma unroll
        for (int i = 0; i < R; ++i) left[i] = square[(ty + 16 * i) * (kC + 1) + c];
#pragma unroll
        for (int k = 0; k < COLUMNS; ++k)
            if (tx + 16 * k < head_dim) {
                const A right = x[c * stride + tx + 16 * k];
#pragma unroll
                for (int i = 0; i < R; ++i) sum[i][k] += left[i] * right;
            }
    }
}

// Over the 16 threads of a row.
template <class A>
__device__ inline A row_sum(A value) {
#pragma unroll
    for (int offset = 8; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
    return value;
}
template <class A>
__device__ inline A row_max(A value) {
#pragma unroll
    for (int offset = 8; offset > 0; offset /= 2) value = max(value, __shfl_xor_sync(~0u, value, offset));
    return value;
}

template <class T, int COLUMNS>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const __grid_constant__ SoftmaxAttentionForward args) {
    using A = acc_t<T>;
    constexpr int kC = kTile<A>, kR = kC / 16;
    const SoftmaxAttentionShape& shape = args.shape;
    const int head_dim = static_cast<int>(shape.head_dim), stride = head_dim + 1;
    extern __shared__ __align__(16) unsigned char memory[];
    A* q_tile = reinterpret_cast<A*>(memory);
    A* kv_tile = q_tile + kC * stride;
    A* square = kv_tile + kC * stride;
    const int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
    const int64_t head = blockIdx.y, batch = blockIdx.z, kv_head = head / (shape.heads / shape.kv_heads);
    const int64_t first = int64_t{blockIdx.x} * kC, count = min(int64_t{kC}, shape.query_length - first);
    const T* q = static_cast<const T*>(args.q) + batch * shape.query_length * args.q_stride + head * head_dim;
    const T* k =
        static_cast<const T*>(args.k) + batch * shape.key_length * args.k_stride + kv_head * head_dim;
    const T* v =
        static_cast<const T*>(args.v) + batch * shape.key_length * args.v_stride + kv_head * head_dim;
    load_rows<T, kC>(q, args.q_stride, first, count, head_dim, q_tile, stride);
    Visible visible[kR];
    A top[kR], total[kR], out[kR][COLUMNS] = {};
#pragma unroll
    for (int i = 0; i < kR; ++i) {
        const int64_t query = first + ty + 16 * i;
        visible[i] = query < shape.query_length ? visible_keys(shape, query) : Visible{0, 0};
        top[i] = -INFINITY;
        total[i] = 0;
    }
    const int64_t keys_begin = visible_keys(shape, first).begin / kC * kC,
                  keys_end = visible_keys(shape, first + count - 1).end;
    for (int64_t key = keys_begin; key < keys_end; key += kC) {
        const int64_t keys = min(int64_t{kC}, shape.key_length - key);
        __syncthreads();
        load_rows<T, kC>(k, args.k_stride, key, keys, head_dim, kv_tile, stride);
        __syncthreads();
        A score[kR][kR];
        dot_tile<kR>(q_tile, kv_tile, stride, head_dim, ty, tx, score);
#pragma unroll
        for (int i = 0; i < kR; ++i) {
            A most = -INFINITY;
#pragma unroll
            for (int j = 0; j < kR; ++j) {
                const int64_t column = key + tx + 16 * j;
                score[i][j] = column >= visible[i].begin && column < visible[i].end
                                  ? score[i][j] * A(shape.scale)
                                  : A(-INFINITY);
                most = max(most, score[i][j]);
            }
            const A now = max(top[i], row_max(most));
            const A shift = now == A(-INFINITY) ? A(0) : now;  // nothing seen yet: exp(-inf - 0) = 0
            const A decay = exp(top[i] - shift);
            A sum = 0;
#pragma unroll
            for (int j = 0; j < kR; ++j) {
                const A p = exp(score[i][j] - shift);
                sum += p;
                square[(ty + 16 * i) * (kC + 1) + tx + 16 * j] = p;
            }
            total[i] = total[i] * decay + row_sum(sum);
            top[i] = now;
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c) out[i][c] *= decay;
        }
        __syncthreads();
        load_rows<T, kC>(v, args.v_stride, key, keys, head_dim, kv_tile, stride);
        __syncthreads();
        add_product<kR, COLUMNS>(square, kv_tile, stride, head_dim, ty, tx, out);
    }
#pragma unroll
    for (int i = 0; i < kR; ++i) {
        const int64_t query = first + ty + 16 * i;
        if (query >= shape.query_length) continue;
        T* o =
            static_cast<T*>(args.o) + ((batch * shape.query_length + query) * shape.heads + head) * head_dim;
        const A scale = total[i] > 0 ? A(1) / total[i] : A(0) * total[i];
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c)
            if (tx + 16 * c < head_dim)
                o[tx + 16 * c] = from_acc<T>(total[i] == A(0) ? A(0) : out[i][c] * scale);
        if (args.log_sum_exp && tx == 0)
            static_cast<A*>(args.log_sum_exp)[(batch * shape.heads + head) * shape.query_length + query] =
                top[i] + log(total[i]);
    }
}

// delta[batch, head, query] = do . o: one warp per row.
template <class T>
__global__ void delta_kernel(const __grid_constant__ SoftmaxAttentionBackward args, acc_t<T>* delta) {
    using A = acc_t<T>;
    const SoftmaxAttentionShape& shape = args.shape;
    const int64_t row = int64_t{blockIdx.x} * 8 + threadIdx.x / 32,
                  rows = shape.batch * shape.query_length * shape.heads;
    if (row >= rows) return;
    const T* o = static_cast<const T*>(args.o) + row * shape.head_dim;
    const T* d_o = static_cast<const T*>(args.d_o) + row * shape.head_dim;
    A sum = 0;
    for (int64_t c = threadIdx.x % 32; c < shape.head_dim; c += 32) sum += to_acc(o[c]) * to_acc(d_o[c]);
    sum = warp_sum(sum);
    const int64_t token = row / shape.heads, head = row % shape.heads;
    const int64_t batch = token / shape.query_length, query = token % shape.query_length;
    if (threadIdx.x % 32 == 0) delta[(batch * shape.heads + head) * shape.query_length + query] = sum;
}

// Gradient of q for a tile of queries.
template <class T, int COLUMNS>
__global__ void __launch_bounds__(kThreads)
    query_gradient_kernel(const __grid_constant__ SoftmaxAttentionBackward args, const acc_t<T>* delta) {
    using A = acc_t<T>;
    constexpr int kC = kTile<A>, kR = kC / 16;
    const SoftmaxAttentionShape& shape = args.shape;
    const int head_dim = static_cast<int>(shape.head_dim), stride = head_dim + 1;
    extern __shared__ __align__(16) unsigned char memory[];
    A* q_tile = reinterpret_cast<A*>(memory);
    A* do_tile = q_tile + kC * stride;
    A* kv_tile = do_tile + kC * stride;
    A* square = kv_tile + kC * stride;
    const int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
    const int64_t head = blockIdx.y, batch = blockIdx.z, kv_head = head / (shape.heads / shape.kv_heads);
    const int64_t first = int64_t{blockIdx.x} * kC, count = min(int64_t{kC}, shape.query_length - first);
    const int64_t base = batch * shape.query_length;
    const T* k =
        static_cast<const T*>(args.k) + batch * shape.key_length * args.k_stride + kv_head * head_dim;
    const T* v =
        static_cast<const T*>(args.v) + batch * shape.key_length * args.v_stride + kv_head * head_dim;
    load_rows<T, kC>(static_cast<const T*>(args.q) + base * args.q_stride + head * head_dim, args.q_stride,
                     first, count, head_dim, q_tile, stride);
    load_rows<T, kC>(static_cast<const T*>(args.d_o) + (base * shape.heads + head) * head_dim,
                     shape.heads * head_dim, first, count, head_dim, do_tile, stride);
    Visible visible[kR];
    A lse[kR], dot[kR], gradient[kR][COLUMNS] = {};
#pragma unroll
    for (int i = 0; i < kR; ++i) {
        const int64_t query = first + ty + 16 * i;
        const bool here = query < shape.query_length;
        visible[i] = here ? visible_keys(shape, query) : Visible{0, 0};
        const int64_t index = (batch * shape.heads + head) * shape.query_length + query;
        lse[i] = here ? static_cast<const A*>(args.log_sum_exp)[index] : A(0);
        dot[i] = here ? delta[index] : A(0);
    }
    const int64_t keys_begin = visible_keys(shape, first).begin / kC * kC,
                  keys_end = visible_keys(shape, first + count - 1).end;
    for (int64_t key = keys_begin; key < keys_end; key += kC) {
        const int64_t keys = min(int64_t{kC}, shape.key_length - key);
        A score[kR][kR], d_p[kR][kR];
        __syncthreads();
        load_rows<T, kC>(v, args.v_stride, key, keys, head_dim, kv_tile, stride);
        __syncthreads();
        dot_tile<kR>(do_tile, kv_tile, stride, head_dim, ty, tx, d_p);
        __syncthreads();
        load_rows<T, kC>(k, args.k_stride, key, keys, head_dim, kv_tile, stride);
        __syncthreads();
        dot_tile<kR>(q_tile, kv_tile, stride, head_dim, ty, tx, score);
#pragma unroll
        for (int i = 0; i < kR; ++i)
#pragma unroll
            for (int j = 0; j < kR; ++j) {
                const int64_t column = key + tx + 16 * j;
                const bool seen = column >= visible[i].begin && column < visible[i].end;
                const A p = seen ? exp(score[i][j] * A(shape.scale) - lse[i]) : A(0);
                square[(ty + 16 * i) * (kC + 1) + tx + 16 * j] = p * (d_p[i][j] - dot[i]) * A(shape.scale);
            }
        __syncthreads();
        add_product<kR, COLUMNS>(square, kv_tile, stride, head_dim, ty, tx, gradient);
    }
#pragma unroll
    for (int i = 0; i < kR; ++i) {
        const int64_t query = first + ty + 16 * i;
        if (query >= shape.query_length) continue;
        T* dq = static_cast<T*>(args.dq) + (base + query) * args.dq_stride + head * head_dim;
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c)
            if (tx + 16 * c < head_dim) dq[tx + 16 * c] = from_acc<T>(gradient[i][c]);
    }
}

// Gradients of k and v for a tile of keys: all heads of the group and all queries that see it, in order. Rows
// of the squares are keys here, columns queries.
template <class T, int COLUMNS>
__global__ void __launch_bounds__(kThreads)
    key_gradient_kernel(const __grid_constant__ SoftmaxAttentionBackward args, const acc_t<T>* delta) {
    using A = acc_t<T>;
    constexpr int kC = kTile<A>, kR = kC / 16;
    const SoftmaxAttentionShape& shape = args.shape;
    const int head_dim = static_cast<int>(shape.head_dim), stride = head_dim + 1;
    extern __shared__ __align__(16) unsigned char memory[];
    A* k_tile = reinterpret_cast<A*>(memory);
    A* v_tile = k_tile + kC * stride;
    A* query_tile = v_tile + kC * stride;
    A* square = query_tile + kC * stride;
    A* lse = square + kC * (kC + 1);
    A* dot = lse + kC;
    Visible* visible = reinterpret_cast<Visible*>(dot + kC);
    const int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
    const int64_t kv_head = blockIdx.y, batch = blockIdx.z, group = shape.heads / shape.kv_heads;
    const int64_t first = int64_t{blockIdx.x} * kC, count = min(int64_t{kC}, shape.key_length - first);
    load_rows<T, kC>(
        static_cast<const T*>(args.k) + batch * shape.key_length * args.k_stride + kv_head * head_dim,
        args.k_stride, first, count, head_dim, k_tile, stride);
    load_rows<T, kC>(
        static_cast<const T*>(args.v) + batch * shape.key_length * args.v_stride + kv_head * head_dim,
        args.v_stride, first, count, head_dim, v_tile, stride);
    A d_k[kR][COLUMNS] = {}, d_v[kR][COLUMNS] = {};
    const int64_t ahead = shape.key_length - shape.query_length;  // query i sees key i + ahead last
    const int64_t queries_begin = first > ahead ? (first - ahead) / kC * kC : 0;
    const int64_t queries_end =
        shape.cu_seqlens ? shape.cu_seqlens[document_of(shape, first + count - 1) + 1] : shape.query_length;
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        const int64_t base = batch * shape.query_length,
                      statistics = (batch * shape.heads + head) * shape.query_length;
        for (int64_t query = queries_begin; query < queries_end; query += kC) {
            const int64_t queries = min(int64_t{kC}, shape.query_length - query);
            A score[kR][kR], d_p[kR][kR];
            __syncthreads();
            load_rows<T, kC>(static_cast<const T*>(args.q) + base * args.q_stride + head * head_dim,
                             args.q_stride, query, queries, head_dim, query_tile, stride);
            if (threadIdx.x < kC) {
                const bool here = threadIdx.x < queries;
                lse[threadIdx.x] =
                    here ? static_cast<const A*>(args.log_sum_exp)[statistics + query + threadIdx.x] : A(0);
                dot[threadIdx.x] = here ? delta[statistics + query + threadIdx.x] : A(0);
                visible[threadIdx.x] = here ? visible_keys(shape, query + threadIdx.x) : Visible{0, 0};
            }
            __syncthreads();
            dot_tile<kR>(k_tile, query_tile, stride, head_dim, ty, tx, score);
            __syncthreads();
            load_rows<T, kC>(static_cast<const T*>(args.d_o) + (base * shape.heads + head) * head_dim,
                             shape.heads * head_dim, query, queries, head_dim, query_tile, stride);
            A p[kR][kR];
#pragma unroll
            for (int i = 0; i < kR; ++i)
#pragma unroll
                for (int j = 0; j < kR; ++j) {
                    const int column = tx + 16 * j;
                    const int64_t key = first + ty + 16 * i;
                    const bool seen = key >= visible[column].begin && key < visible[column].end;
                    p[i][j] = seen ? exp(score[i][j] * A(shape.scale) - lse[column]) : A(0);
                    square[(ty + 16 * i) * (kC + 1) + column] = p[i][j];
                }
            __syncthreads();
            add_product<kR, COLUMNS>(square, query_tile, stride, head_dim, ty, tx, d_v);
            dot_tile<kR>(v_tile, query_tile, stride, head_dim, ty, tx, d_p);
            __syncthreads();
            load_rows<T, kC>(static_cast<const T*>(args.q) + base * args.q_stride + head * head_dim,
                             args.q_stride, query, queries, head_dim, query_tile, stride);
#pragma unroll
            for (int i = 0; i < kR; ++i)
#pragma unroll
                for (int j = 0; j < kR; ++j) {
                    const int column = tx + 16 * j;
                    square[(ty + 16 * i) * (kC + 1) + column] =
                        p[i][j] * (d_p[i][j] - dot[column]) * A(shape.scale);
                }
            __syncthreads();
            add_product<kR, COLUMNS>(square, query_tile, stride, head_dim, ty, tx, d_k);
        }
    }
#pragma unroll
    for (int i = 0; i < kR; ++i) {
        const int64_t key = first + ty + 16 * i;
        if (key >= shape.key_length) continue;
        T* dk =
            static_cast<T*>(args.dk) + (batch * shape.key_length + key) * args.dk_stride + kv_head * head_dim;
        T* dv =
            static_cast<T*>(args.dv) + (batch * shape.key_length + key) * args.dv_stride + kv_head * head_dim;
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c)
            if (tx + 16 * c < head_dim) {
                dk[tx + 16 * c] = from_acc<T>(d_k[i][c]);
                dv[tx + 16 * c] = from_acc<T>(d_v[i][c]);
            }
    }
}

void check(const SoftmaxAttentionShape& shape) {
    if (shape.head_dim < 1 || shape.head_dim > 256)
        fail_arguments("softmax attention", "head_dim must be 1..256", shape.head_dim);
    if (shape.query_length > shape.key_length)
        fail_arguments("softmax attention", "more queries than keys: the first would see none",
                       shape.query_length);
    if (shape.kv_heads < 1 || shape.heads % shape.kv_heads != 0)
        fail_arguments("softmax attention", "heads must be a multiple of kv_heads", shape.kv_heads);
    if (shape.cu_seqlens && (shape.batch != 1 || shape.query_length != shape.key_length))
        fail_arguments("softmax attention", "packed documents need batch 1 and as many keys as queries",
                       shape.batch);
}

template <class Kernel>
void allow_shared_memory(const Stream& stream, const Kernel& kernel, size_t bytes) {
    if (bytes > max_shared_memory(stream.device.index))
        fail_arguments("softmax attention", "too much shared memory wanted for this GPU",
                       static_cast<int64_t>(bytes));
    LEVIN_CUDA_CHECK(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
}

// Shared memory of `tiles` tiles of rows, one square and the per-query numbers.
template <class A>
size_t shared_bytes(const SoftmaxAttentionShape& shape, int tiles) {
    constexpr size_t kC = kTile<A>;
    return sizeof(A) * (tiles * kC * (shape.head_dim + 1) + kC * (kC + 1) + 2 * kC) + kC * sizeof(Visible) +
           16;
}

template <class T, int COLUMNS>
void forward(const Stream& stream, const SoftmaxAttentionForward& args) {
    using A = acc_t<T>;
    const SoftmaxAttentionShape& shape = args.shape;
    const size_t bytes = shared_bytes<A>(shape, 2);
    allow_shared_memory(stream, forward_kernel<T, COLUMNS>, bytes);
    const dim3 grid(static_cast<unsigned>(ceil_div(shape.query_length, kTile<A>)),
                    static_cast<unsigned>(shape.heads), static_cast<unsigned>(shape.batch));
    forward_kernel<T, COLUMNS><<<grid, kThreads, bytes, use(stream)>>>(args);
    LEVIN_CUDA_LAUNCHED();
}

template <class T, int COLUMNS>
void backward(const Stream& stream, const SoftmaxAttentionBackward& args) {
    using A = acc_t<T>;
    const SoftmaxAttentionShape& shape = args.shape;
    const cudaStream_t s = use(stream);
    const int64_t rows = shape.batch * shape.query_length * shape.heads;
    Scratch delta(s, static_cast<size_t>(rows) * sizeof(A));
    delta_kernel<T><<<static_cast<unsigned>(ceil_div(rows, 8)), kThreads, 0, s>>>(args, delta.as<A>());
    LEVIN_CUDA_LAUNCHED();
    const size_t bytes = shared_bytes<A>(shape, 3);
    allow_shared_memory(stream, query_gradient_kernel<T, COLUMNS>, bytes);
    allow_shared_memory(stream, key_gradient_kernel<T, COLUMNS>, bytes);
    const dim3 queries(static_cast<unsigned>(ceil_div(shape.query_length, kTile<A>)),
                       static_cast<unsigned>(shape.heads), static_cast<unsigned>(shape.batch));
    const dim3 keys(static_cast<unsigned>(ceil_div(shape.key_length, kTile<A>)),
                    static_cast<unsigned>(shape.kv_heads), static_cast<unsigned>(shape.batch));
    query_gradient_kernel<T, COLUMNS><<<queries, kThreads, bytes, s>>>(args, delta.as<A>());
    LEVIN_CUDA_LAUNCHED();
    key_gradient_kernel<T, COLUMNS><<<keys, kThreads, bytes, s>>>(args, delta.as<A>());
    LEVIN_CUDA_LAUNCHED();
}

}  // namespace

void softmax_attention_forward(const Stream& stream, const SoftmaxAttentionForward& args) {
    check(args.shape);
    if (args.shape.batch <= 0 || args.shape.query_length <= 0 || args.shape.heads <= 0) return;
    if (cudnn_attention_forward(stream, args)) return;
    by_type(args.shape.dtype, "softmax_attention_forward", [&](auto tag) {
        using T = typename decltype(tag)::type;
        args.shape.head_dim <= 128 ? forward<T, 8>(stream, args) : forward<T, 16>(stream, args);
    });
}

void softmax_attention_backward(const Stream& stream, const SoftmaxAttentionBackward& args) {
    check(args.shape);
    if (args.shape.batch <= 0 || args.shape.query_length <= 0 || args.shape.key_length <= 0 ||
        args.shape.heads <= 0)
        return;
    if (cudnn_attention_backward(stream, args)) return;
    by_type(args.shape.dtype, "softmax_attention_backward", [&](auto tag) {
        using T = typename decltype(tag)::type;
        args.shape.head_dim <= 128 ? backward<T, 8>(stream, args) : backward<T, 16>(stream, args);
    });
}

}  // namespace levin::kernels::cuda
