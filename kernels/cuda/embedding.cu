// Token embedding. Its gradient sorts the tokens by id (stable, so token order stays inside an id) and sums
// each run.
#include <bit>
#include <cub/device/device_radix_sort.cuh>

#include "kernels/backends.h"
#include "kernels/cuda/element.cuh"

namespace levin::kernels::cuda {

namespace {

template <class T>
struct GatherOp {
    const int32_t* ids;
    const T* table;
    T* y;
    int64_t width, first, vocab;
    acc_t<T> scale;
    template <int N>
    __device__ void apply(int64_t t, int64_t c) const {
        const int64_t place = ids[t] - first;
        Pack<acc_t<T>, N> value{};
        if (place >= 0 && place < vocab) value = load<N>(table + place * width + c);
#pragma unroll
        for (int i = 0; i < N; ++i) value[i] *= scale;
        store<N>(y + t * width + c, value);
    }
};

__global__ void number_kernel(int64_t count, int32_t* indices) {
    const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (i < count) indices[i] = static_cast<int32_t>(i);
}

// The block at the first sorted place of an id sums that id's whole run, in order; the other blocks leave at
// once.
template <class T, int N>
__global__ void scatter_kernel(int64_t tokens, int64_t width, const int32_t* sorted_ids,
                               const int32_t* sorted_tokens, int64_t padding_id, int64_t table_first,
                               int64_t vocab, acc_t<T> scale, const T* dy, acc_t<T>* dtable) {
    using A = acc_t<T>;
    const int64_t first = blockIdx.x;
    const int32_t id = sorted_ids[first];
    const int64_t place = id - table_first;
    if (id == padding_id || place < 0 || place >= vocab || (first > 0 && sorted_ids[first - 1] == id)) return;
    const int64_t c = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * N;
    Pack<A, N> sum{};
    constexpr int kAhead = 8;  // independent rows in flight
    int64_t end = first + 1;
    for (bool more = true; more;) {  // the run's end, by leaps of the block
        const int64_t at = end + threadIdx.x;
        const int same = __syncthreads_count(at < tokens && sorted_ids[at] == id);
        end += same;
        more = same == static_cast<int>(blockDim.x);
    }
    if (c >= width) return;
    int64_t i = first;
    for (; i + kAhead <= end; i += kAhead) {
        Raw<T, N> rows[kAhead];
#pragma unroll
        for (int k = 0; k < kAhead; ++k)
            rows[k] = *reinterpret_cast<const Raw<T, N>*>(dy + sorted_tokens[i + k] * width + c);
#pragma unroll
        for (int k = 0; k < kAhead; ++k)
#pragma unroll
            for (int j = 0; j < N; ++j) sum[j] += to_acc(rows[k].v[j]);
    }
    for (; i < end; ++i) {
        const auto row = load<N>(dy + sorted_tokens[i] * width + c);
#pragma unroll
        for (int j = 0; j < N; ++j) sum[j] += row[j];
    }
    A* out = dtable + place * width + c;
#pragma unroll
    for (int j = 0; j < N; ++j) out[j] += scale * sum[j];
}

}  // namespace

void embedding_forward(const Stream& stream, const EmbeddingForward& args) {
    const cudaStream_t s = use(stream);
    by_type(args.dtype, "embedding_forward", [&](auto tag) {
        using T = typename decltype(tag)::type;
        map_rows<T>(s, args.tokens, args.width,
                    vectorizable<T>({{args.table, args.width}, {args.y, args.width}}),
                    GatherOp<T>{args.ids, static_cast<const T*>(args.table), static_cast<T*>(args.y),
                                args.width, args.first, args.vocab, static_cast<acc_t<T>>(args.scale)});
    });
}

void embedding_backward(const Stream& stream, const EmbeddingBackward& args) {
    const cudaStream_t s = use(stream);
    if (args.tokens <= 0 || args.width <= 0) return;
    if (args.tokens > INT32_MAX) fail_arguments("embedding_backward", "tokens must fit 31 bits", args.tokens);
    const size_t count = static_cast<size_t>(args.tokens);
    // Of a table divided over ranks, ids of the whole one come: any 31 bits.
    const bool whole = args.first == 0 && !args.divided;
    const int bits = whole ? std::bit_width(static_cast<uint64_t>(args.vocab > 1 ? args.vocab - 1 : 1)) : 31;
    Scratch numbers(s, 3 * count * sizeof(int32_t));
    auto* tokens = numbers.as<int32_t>();
    int32_t *sorted_tokens = tokens + count, *sorted_ids = sorted_tokens + count;
    number_kernel<<<static_cast<unsigned>(ceil_div(args.tokens, 256)), 256, 0, s>>>(args.tokens, tokens);
    LEVIN_CUDA_LAUNCHED();
    const auto* ids = reinterpret_cast<const uint32_t*>(args.ids);
    auto* keys = reinterpret_cast<uint32_t*>(sorted_ids);
    size_t bytes = 0;
    LEVIN_CUDA_CHECK(cub::DeviceRadixSort::SortPairs(nullptr, bytes, ids, keys, tokens, sorted_tokens,
                                                     static_cast<int>(count), 0, bits, s));
    Scratch sort(s, bytes);
    LEVIN_CUDA_CHECK(cub::DeviceRadixSort::SortPairs(sort.as<>(), bytes, ids, keys, tokens, sorted_tokens,
                                                     static_cast<int>(count), 0, bits, s));
    by_type(args.dtype, "embedding_backward", [&](auto tag) {
        using T = typename decltype(tag)::type;
        const bool vector = args.width % kVector<T> == 0 && vectorizable<T>({{args.dy, args.width}});
        const int64_t vectors = args.width / (vector ? kVector<T> : 1);
        const int threads = vectors < 128 ? static_cast<int>(ceil_div(vectors, 32) * 32) : 128;
        const dim3 grid(static_cast<unsigned>(args.tokens),
                        static_cast<unsigned>(ceil_div(vectors, threads)));
        auto* kernel = vector ? scatter_kernel<T, kVector<T>> : scatter_kernel<T, 1>;
        kernel<<<grid, threads, 0, s>>>(args.tokens, args.width, sorted_ids, sorted_tokens, args.padding_id,
                                        args.first, args.vocab, static_cast<acc_t<T>>(args.scale),
                                        static_cast<const T*>(args.dy), static_cast<acc_t<T>*>(args.dtable));
        LEVIN_CUDA_LAUNCHED();
    });
}

}  // namespace levin::kernels::cuda
