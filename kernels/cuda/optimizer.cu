// AdamW and gradient norm over many tensors. A launch takes the addresses of up to kGroup tensors as a kernel
// parameter and cuts each tensor into chunks, one block each: few launches, no device copy of the list.
#include <cmath>

#include "kernels/backends.h"
#include "kernels/cuda/row.cuh"

namespace levin::kernels::cuda {

namespace {

constexpr int kThreads = 256;
// Elements of a block. AdamW reads and writes much for each: one vector a thread kept the memory busiest (4.2
// TB/s of f32 gradients and states on an H200, 4.0 with 16384). With bf16 moments too it is 4
// elements: 2.9 TB/s on an H100, 1.4 with 8 elements, 16 bytes of each.
constexpr int64_t kUpdated = 1024, kSquared = 16384;
constexpr int kGroup = 56;  // tensors of a launch: the parameter block stays under 4 KB (7 with bf16 moments)

// Which tensor of the group block `block` works on, and its chunk: ends[i] = chunks of tensors 0 .. i.
struct ChunkMap {
    int tensors = 0;
    int32_t ends[kGroup];
    __device__ int find(int32_t block, int64_t* chunk) const {
        int low = 0, high = tensors - 1;
        while (low < high) {
            const int middle = (low + high) / 2;
            if (block < ends[middle])
                high = middle;
            else
                low = middle + 1;
        }
        *chunk = block - (low > 0 ? ends[low - 1] : 0);
        return low;
    }
};

template <class A, class M>
struct AdamWGroup {
    ChunkMap map;
    AdamWTensor tensors[kGroup];
};
template <>
struct AdamWGroup<float, Bf16> {
    ChunkMap map;
    AdamWTensor tensors[kGroup];
    MomentRounding rounding[kGroup];
};

template <class A>
struct AdamWNumbers {
    A learning_rate, beta1, beta2, rest1, rest2, eps, correction1, correction2;
    const A* grad_scale;
};

// The masters of N neighbours in their two halves.
template <int N>
__device__ Pack<float, N> load_split(const AdamWTensor& t, int64_t i) {
    const auto upper = *reinterpret_cast<const Raw<uint16_t, N>*>(static_cast<const uint16_t*>(t.model) + i);
    const auto lower = *reinterpret_cast<const Raw<uint16_t, N>*>(t.remainder + i);
    Pack<float, N> w;
#pragma unroll
    for (int j = 0; j < N; ++j) w[j] = __uint_as_float(join_bits(upper.v[j], lower.v[j]));
    return w;
}
template <int N>
__device__ void store_split(const AdamWTensor& t, int64_t i, const Pack<float, N>& w) {
    Raw<uint16_t, N> upper, lower;
#pragma unroll
    for (int j = 0; j < N; ++j) split_bits(__float_as_uint(w[j]), &upper.v[j], &lower.v[j]);
    *reinterpret_cast<Raw<uint16_t, N>*>(static_cast<uint16_t*>(t.model) + i) = upper;
    *reinterpret_cast<Raw<uint16_t, N>*>(t.remainder + i) = lower;
}

// Moments in bf16.
template <int N>
__device__ void store_rounded(const AdamWTensor& t, const MomentRounding& rounding, int64_t i,
                              const Pack<float, N>& m, const Pack<float, N>& v) {
    Raw<uint16_t, N> new_m, new_v;
#pragma unroll
    for (int j = 0; j < N; ++j) {
        const uint64_t number =
            rounding.gap == 0 ? static_cast<uint64_t>(rounding.first + i + j) : number_of(rounding, i + j);
        const uint32_t random = rounding_bits(number, rounding.key[0], rounding.key[1]);
        new_m.v[j] = round_at_random(__float_as_uint(m[j]), random & 0xffffu);
        new_v.v[j] = round_at_random(__float_as_uint(v[j]), random >> 16);
    }
    *reinterpret_cast<Raw<uint16_t, N>*>(static_cast<uint16_t*>(t.m) + i) = new_m;
    *reinterpret_cast<Raw<uint16_t, N>*>(static_cast<uint16_t*>(t.v) + i) = new_v;
}

template <class A, class G, class M, int N, bool Split>
__device__ void adamw_apply(const AdamWGroup<A, M>& group, int tensor, const AdamWNumbers<A>& n, A scale,
                            A decay, int64_t i) {
    const AdamWTensor& t = group.tensors[tensor];
    Pack<A, N> w;
    if constexpr (Split)
        w = load_split<N>(t, i);
    else
        w = load<N>(static_cast<const A*>(t.master) + i);
    const auto grad = load<N>(static_cast<const G*>(t.grad) + i);
    auto m = load<N>(static_cast<const M*>(t.m) + i);
    auto v = load<N>(static_cast<const M*>(t.v) + i);
#pragma unroll
    for (int j = 0; j < N; ++j) {
        const A g = grad[j] * scale;
        m[j] = n.beta1 * m[j] + n.rest1 * g;
        v[j] = n.beta2 * v[j] + n.rest2 * g * g;
        w[j] -=
            n.learning_rate * (m[j] / n.correction1 / (sqrt(v[j] / n.correction2) + n.eps) + decay * w[j]);
    }
    if constexpr (std::is_same_v<A, M>) {
        store<N>(static_cast<A*>(t.m) + i, m);
        store<N>(static_cast<A*>(t.v) + i, v);
    } else {
        store_rounded<N>(t, group.rounding[tensor], i, m, v);
    }
    if constexpr (Split) {
        store_split<N>(t, i, w);
        return;
    }
    store<N>(static_cast<A*>(t.master) + i, w);
    if (t.model) {
        Pack<float, N> narrow;
#pragma unroll
        for (int j = 0; j < N; ++j) narrow[j] = static_cast<float>(w[j]);
        store<N>(static_cast<Bf16*>(t.model) + i, narrow);
    }
}

// Gradients of type G, moments of type M.
template <class A, class G, class M>
__global__ void __launch_bounds__(kThreads) adamw_kernel(const __grid_constant__ AdamWGroup<A, M> group,
                                                         const __grid_constant__ AdamWNumbers<A> numbers) {
    constexpr int kN = kVector<A>;
    int64_t chunk;
    const int tensor = group.map.find(blockIdx.x, &chunk);
    const AdamWTensor& t = group.tensors[tensor];
    const A scale = numbers.grad_scale ? *numbers.grad_scale : A(1), decay = A(t.weight_decay);
    const int64_t begin = chunk * kUpdated, end = begin + kUpdated < t.count ? begin + kUpdated : t.count;
    const auto address = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); };
    const bool vector = address(t.master) % 16 == 0 &&
                        (address(t.m) | address(t.v)) % alignof(Raw<M, kN>) == 0 &&
                        address(t.grad) % alignof(Raw<G, kN>) == 0 &&
                        (address(t.model) | address(t.remainder)) % alignof(Raw<Bf16, kN>) == 0;
    const int64_t vectors_end = vector ? begin + (end - begin) / kN * kN : begin;
    const auto all = [&](auto split) {
        for (int64_t i = begin + threadIdx.x * kN; i < vectors_end; i += kThreads * kN)
            adamw_apply<A, G, M, kN, split.value>(group, tensor, numbers, scale, decay, i);
        for (int64_t i = vectors_end + threadIdx.x; i < end; i += kThreads)
            adamw_apply<A, G, M, 1, split.value>(group, tensor, numbers, scale, decay, i);
    };
    if constexpr (std::is_same_v<A, float>)
        if (t.remainder) return all(std::true_type{});
    all(std::false_type{});
}

__global__ void __launch_bounds__(kThreads) split_kernel(const __grid_constant__ SplitMaster args) {
    auto* model = static_cast<uint16_t*>(args.model);
    for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < args.count;
         i += int64_t{gridDim.x} * kThreads)
        if (args.join)
            args.master[i] = __uint_as_float(join_bits(model[i], args.remainder[i]));
        else
            split_bits(__float_as_uint(args.master[i]), model + i, args.remainder + i);
}

struct SquaresGroup {
    ChunkMap map;
    const void* data[kGroup];
    int64_t counts[kGroup];
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    squares_kernel(const __grid_constant__ SquaresGroup group, double* partial) {
    int64_t chunk;
    const int tensor = group.map.find(blockIdx.x, &chunk);
    const T* data = static_cast<const T*>(group.data[tensor]);
    const int64_t begin = chunk * kSquared, count = group.counts[tensor];
    const int64_t end = begin + kSquared < count ? begin + kSquared : count;
    constexpr int kN = kVector<T>;
    const bool vector = reinterpret_cast<uintptr_t>(data) % 16 == 0;
    const int64_t vectors_end = vector ? begin + (end - begin) / kN * kN : begin;
    double sum = 0;
    for (int64_t i = begin + threadIdx.x * kN; i < vectors_end; i += kThreads * kN) {
        const auto value = load<kN>(data + i);
#pragma unroll
        for (int j = 0; j < kN; ++j) sum += static_cast<double>(value[j]) * static_cast<double>(value[j]);
    }
    for (int64_t i = vectors_end + threadIdx.x; i < end; i += kThreads) {
        const auto value = static_cast<double>(to_acc(data[i]));
        sum += value * value;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void sum_kernel(int64_t count, const double* partial, double* out) {
    double sum = 0;
    for (int64_t i = threadIdx.x; i < count; i += blockDim.x) sum += partial[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) *out = sum;
}

template <class A>
__global__ void clip_kernel(const double* sum, double max_norm, double* grad_norm, A* grad_scale) {
    const double norm = sqrt(*sum);
    *grad_norm = norm;
    const double factor = max_norm / (norm + 1e-6);
    *grad_scale = static_cast<A>(max_norm > 0 && !(factor >= 1) ? factor : 1);  // NaN stays NaN
}

// Calls launch(map, tensors of the group, blocks) for groups of tensors that have elements, cut into chunks.
template <class Count, class Launch>
void for_each_group(int64_t tensors, int64_t chunk, const Count& count_of, const Launch& launch) {
    ChunkMap map;
    int64_t members[kGroup];
    int64_t blocks = 0;
    const auto flush = [&] {
        if (map.tensors > 0) launch(map, members, blocks);
        map.tensors = 0;
        blocks = 0;
    };
    for (int64_t t = 0; t < tensors; ++t) {
        const int64_t chunks = ceil_div(count_of(t), chunk);
        if (chunks == 0) continue;
        if (map.tensors == kGroup || blocks + chunks > INT32_MAX) flush();
        blocks += chunks;
        members[map.tensors] = t;
        map.ends[map.tensors++] = static_cast<int32_t>(blocks);
    }
    flush();
}

template <class A, class G, class M>
void adamw_typed(cudaStream_t stream, const AdamW& args) {
    const AdamWNumbers<A> numbers{static_cast<A>(args.learning_rate),
                                  static_cast<A>(args.beta1),
                                  static_cast<A>(args.beta2),
                                  static_cast<A>(1 - args.beta1),
                                  static_cast<A>(1 - args.beta2),
                                  static_cast<A>(args.eps),
                                  static_cast<A>(1 - std::pow(args.beta1, static_cast<double>(args.step))),
                                  static_cast<A>(1 - std::pow(args.beta2, static_cast<double>(args.step))),
                                  static_cast<const A*>(args.grad_scale_pointer)};
    for_each_group(
        args.tensors, kUpdated, [&](int64_t t) { return args.list[t].count; },
        [&](const ChunkMap& map, const int64_t* members, int64_t blocks) {
            AdamWGroup<A, M> group;
            group.map = map;
            for (int i = 0; i < map.tensors; ++i) {
                group.tensors[i] = args.list[members[i]];
                if constexpr (!std::is_same_v<A, M>) group.rounding[i] = args.rounding[members[i]];
            }
            adamw_kernel<A, G, M><<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(group, numbers);
            LEVIN_CUDA_LAUNCHED();
        });
}

}  // namespace

void adamw(const Stream& stream, const AdamW& args) {
    const cudaStream_t s = use(stream);
    const auto with_moments = [&](auto tag) {
        using M = typename decltype(tag)::type;
        if (args.bf16_gradients)
            adamw_typed<float, Bf16, M>(s, args);
        else
            adamw_typed<float, float, M>(s, args);
    };
    if (args.acc == DType::f64 && !args.bf16_gradients && !args.rounding)
        adamw_typed<double, double, double>(s, args);
    else if (args.acc == DType::f32 && args.rounding)
        with_moments(Tag<Bf16>{});
    else if (args.acc == DType::f32)
        with_moments(Tag<float>{});
    else
        fail_arguments("adamw", "acc must be f32, or f64 with gradients and moments in f64",
                       static_cast<int64_t>(args.acc));
}

void split_master(const Stream& stream, const SplitMaster& args) {
    const cudaStream_t s = use(stream);
    if (args.count <= 0) return;
    const int64_t blocks = ceil_div(args.count, kThreads);
    split_kernel<<<static_cast<unsigned>(blocks < 65536 ? blocks : 65536), kThreads, 0, s>>>(args);
    LEVIN_CUDA_LAUNCHED();
}

void sum_of_squares(const Stream& stream, const SumOfSquares& args) {
    const cudaStream_t s = use(stream);
    int64_t chunks = 0;
    for (int64_t t = 0; t < args.tensors; ++t) chunks += ceil_div(args.counts[t], kSquared);
    Scratch partial(s, static_cast<size_t>(chunks) * sizeof(double));
    by_type(args.dtype, "sum_of_squares", [&](auto tag) {
        using T = typename decltype(tag)::type;
        int64_t done = 0;
        for_each_group(
            args.tensors, kSquared, [&](int64_t t) { return args.counts[t]; },
            [&](const ChunkMap& map, const int64_t* members, int64_t blocks) {
                SquaresGroup group;
                group.map = map;
                for (int i = 0; i < map.tensors; ++i) {
                    group.data[i] = args.list[members[i]];
                    group.counts[i] = args.counts[members[i]];
                }
                squares_kernel<T>
                    <<<static_cast<unsigned>(blocks), kThreads, 0, s>>>(group, partial.as<double>() + done);
                LEVIN_CUDA_LAUNCHED();
                done += blocks;
            });
    });
    sum_kernel<<<1, 1024, 0, s>>>(chunks, partial.as<double>(), args.out);
    LEVIN_CUDA_LAUNCHED();
}

void clip_scale(const Stream& stream, const ClipScale& args) {
    const cudaStream_t s = use(stream);
    if (args.acc == DType::f64)
        clip_kernel<<<1, 1, 0, s>>>(args.sum, args.max_norm, args.grad_norm,
                                    static_cast<double*>(args.grad_scale));
    else
        clip_kernel<<<1, 1, 0, s>>>(args.sum, args.max_norm, args.grad_norm,
                                    static_cast<float*>(args.grad_scale));
    LEVIN_CUDA_LAUNCHED();
}

}  // namespace levin::kernels::cuda
