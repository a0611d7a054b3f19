// Copies, sums and products, one pass over memory each.
#include "kernels/backends.h"
#include "kernels/cuda/column_reduce.cuh"
#include "kernels/cuda/element.cuh"

namespace levin::kernels::cuda {

namespace {

template <class Bits>
__global__ void fill_kernel(int64_t count, Bits* x, Bits value) {
    for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count;
         i += int64_t{gridDim.x} * blockDim.x)
        x[i] = value;
}

template <class Bits>
void fill_bits(cudaStream_t stream, int64_t count, void* x, Bits value) {
    const int64_t blocks = ceil_div(count, 256);
    fill_kernel<<<static_cast<unsigned>(blocks < 8192 ? blocks : 8192), 256, 0, stream>>>(
        count, static_cast<Bits*>(x), value);
    LEVIN_CUDA_LAUNCHED();
}

// One element of any type, as float64 or, for integers, int64.
struct Any {
    bool is_integer;
    int64_t integer;
    double real;
};
__device__ Any load_any(DType type, const void* x, int64_t i) {
    switch (type) {
        case DType::f64:
            return {false, 0, static_cast<const double*>(x)[i]};
        case DType::f32:
            return {false, 0, static_cast<const float*>(x)[i]};
        case DType::bf16:
            return {false, 0, __bfloat162float(static_cast<const Bf16*>(x)[i])};
        case DType::i64:
            return {true, static_cast<const int64_t*>(x)[i], 0};
        case DType::i32:
            return {true, static_cast<const int32_t*>(x)[i], 0};
        case DType::i16:
            return {true, static_cast<const int16_t*>(x)[i], 0};
        case DType::i8:
            return {true, static_cast<const int8_t*>(x)[i], 0};
        case DType::u16:
            return {true, static_cast<const uint16_t*>(x)[i], 0};
        case DType::u8:
            return {true, static_cast<const uint8_t*>(x)[i], 0};
    }
    return {false, 0, 0};
}
template <class T>
__device__ T number(const Any& value) {
    return value.is_integer ? static_cast<T>(value.integer) : static_cast<T>(value.real);
}
__device__ void store_any(DType type, void* y, int64_t i, const Any& value) {
    switch (type) {
        case DType::f64:
            static_cast<double*>(y)[i] = number<double>(value);
            break;
        case DType::f32:
            static_cast<float*>(y)[i] = number<float>(value);
            break;
        case DType::bf16:
            static_cast<Bf16*>(y)[i] = __float2bfloat16_rn(number<float>(value));
            break;
        case DType::i64:
            static_cast<int64_t*>(y)[i] = number<int64_t>(value);
            break;
        case DType::i32:
            static_cast<int32_t*>(y)[i] = number<int32_t>(value);
            break;
        case DType::i16:
            static_cast<int16_t*>(y)[i] = number<int16_t>(value);
            break;
        case DType::i8:
            static_cast<int8_t*>(y)[i] = number<int8_t>(value);
            break;
        case DType::u16:
            static_cast<uint16_t*>(y)[i] = number<uint16_t>(value);
            break;
        case DType::u8:
            static_cast<uint8_t*>(y)[i] = number<uint8_t>(value);
            break;
    }
}

struct AnyCopyOp {
    Copy args;
    template <int N>
    __device__ void apply(int64_t r, int64_t c) const {
        for (int i = 0; i < N; ++i)
            store_any(args.y_dtype, args.y, r * args.y_stride + c + i,
                      load_any(args.x_dtype, args.x, r * args.x_stride + c + i));
    }
};

template <class X, class Y>
struct CopyOp {
    const X* x;
    int64_t x_stride;
    Y* y;
    int64_t y_stride;
    template <int N>
    __device__ void apply(int64_t r, int64_t c) const {
        const auto value = load<N>(x + r * x_stride + c);
        Pack<acc_t<Y>, N> out;
#pragma unroll
        for (int i = 0; i < N; ++i) out[i] = static_cast<acc_t<Y>>(value[i]);
        store<N>(y + r * y_stride + c, out);
    }
};

// f32 <-> bf16 in vectors, for the copies a training step is full of.
template <class X, class Y>
void copy_vectors(cudaStream_t stream, const Copy& args) {
    const auto* x = static_cast<const X*>(args.x);
    auto* y = static_cast<Y*>(args.y);
    const bool vector = vectorizable<Bf16>({{x, args.x_stride}, {y, args.y_stride}});
    map_rows<Bf16>(stream, args.rows, args.columns, vector, CopyOp<X, Y>{x, args.x_stride, y, args.y_stride});
}

template <class T>
struct AddOp {
    const T *a, *b;
    T* y;
    acc_t<T> alpha, beta;
    template <int N>
    __device__ void apply(int64_t, int64_t i) const {
        auto value = load<N>(a + i);
#pragma unroll
        for (int j = 0; j < N; ++j) value[j] *= alpha;
        if (b) {
            const auto other = load<N>(b + i);
#pragma unroll
            for (int j = 0; j < N; ++j) value[j] += beta * other[j];
        }
        store<N>(y + i, value);
    }
};

template <class T>
struct MultiplyOp {
    const T *a, *b;
    T* y;
    template <int N>
    __device__ void apply(int64_t, int64_t i) const {
        auto value = load<N>(a + i);
        const auto other = load<N>(b + i);
#pragma unroll
        for (int j = 0; j < N; ++j) value[j] *= other[j];
        store<N>(y + i, value);
    }
};

template <class T>
struct BiasAddOp {
    const T* x;
    int64_t x_stride;
    const T* bias;
    T* y;
    int64_t y_stride;
    template <int N>
    __device__ void apply(int64_t r, int64_t c) const {
        auto value = load<N>(x + r * x_stride + c);
        const auto shift = load<N>(bias + c);
#pragma unroll
        for (int j = 0; j < N; ++j) value[j] += shift[j];
        store<N>(y + r * y_stride + c, value);
    }
};

template <class T>
struct ValueColumn {
    const T* x;
    int64_t x_stride;
    __device__ void add(int64_t r, int64_t c, double (&sum)[1]) const {
        sum[0] += to_acc(x[r * x_stride + c]);
    }
};

}  // namespace

void fill(const Stream& stream, const Fill& args) {
    const cudaStream_t s = use(stream);
    if (args.count <= 0) return;
    const auto integer = static_cast<int64_t>(args.value);
    switch (args.dtype) {
        case DType::f64:
            return fill_bits(s, args.count, args.x, args.value);
        case DType::f32:
            return fill_bits(s, args.count, args.x, static_cast<float>(args.value));
        case DType::bf16:
            return fill_bits(s, args.count, args.x, bf16(static_cast<float>(args.value)).bits);
        case DType::i64:
            return fill_bits(s, args.count, args.x, integer);
        case DType::i32:
            return fill_bits(s, args.count, args.x, static_cast<int32_t>(integer));
        case DType::i16:
        case DType::u16:
            return fill_bits(s, args.count, args.x, static_cast<uint16_t>(integer));
        case DType::i8:
        case DType::u8:
            return fill_bits(s, args.count, args.x, static_cast<uint8_t>(integer));
    }
}

void copy(const Stream& stream, const Copy& args) {
    const cudaStream_t s = use(stream);
    if (args.rows <= 0 || args.columns <= 0) return;
    if (args.x_dtype == args.y_dtype) {
        const size_t size = size_of(args.x_dtype);
        if (args.rows == 1)  // may be longer than the largest pitch of a 2D copy, 2 GiB
            LEVIN_CUDA_CHECK(
                cudaMemcpyAsync(args.y, args.x, args.columns * size, cudaMemcpyDeviceToDevice, s));
        else
            LEVIN_CUDA_CHECK(cudaMemcpy2DAsync(args.y, args.y_stride * size, args.x, args.x_stride * size,
                                               args.columns * size, args.rows, cudaMemcpyDeviceToDevice, s));
    } else if (args.x_dtype == DType::f32 && args.y_dtype == DType::bf16) {
        copy_vectors<float, Bf16>(s, args);
    } else if (args.x_dtype == DType::bf16 && args.y_dtype == DType::f32) {
        copy_vectors<Bf16, float>(s, args);
    } else {
        map_rows<Bf16>(s, args.rows, args.columns, false, AnyCopyOp{args});
    }
}

void add(const Stream& stream, const Add& args) {
    const cudaStream_t s = use(stream);
    by_type(args.dtype, "add", [&](auto tag) {
        using T = typename decltype(tag)::type;
        map_flat<T>(
            s, args.count, vectorizable<T>({{args.a, 0}, {args.b, 0}, {args.y, 0}}),
            AddOp<T>{static_cast<const T*>(args.a), static_cast<const T*>(args.b), static_cast<T*>(args.y),
                     static_cast<acc_t<T>>(args.alpha), static_cast<acc_t<T>>(args.beta)});
    });
}

void multiply(const Stream& stream, const Multiply& args) {
    const cudaStream_t s = use(stream);
    by_type(args.dtype, "multiply", [&](auto tag) {
        using T = typename decltype(tag)::type;
        map_flat<T>(s, args.count, vectorizable<T>({{args.a, 0}, {args.b, 0}, {args.y, 0}}),
                    MultiplyOp<T>{static_cast<const T*>(args.a), static_cast<const T*>(args.b),
                                  static_cast<T*>(args.y)});
    });
}

void bias_add(const Stream& stream, const BiasAdd& args) {
    const cudaStream_t s = use(stream);
    by_type(args.dtype, "bias_add", [&](auto tag) {
        using T = typename decltype(tag)::type;
        map_rows<T>(s, args.rows, args.columns,
                    vectorizable<T>({{args.x, args.x_stride}, {args.bias, 0}, {args.y, args.y_stride}}),
                    BiasAddOp<T>{static_cast<const T*>(args.x), args.x_stride,
                                 static_cast<const T*>(args.bias), static_cast<T*>(args.y), args.y_stride});
    });
}

void column_sum(const Stream& stream, const ColumnSum& args) {
    const cudaStream_t s = use(stream);
    by_type(args.dtype, "column_sum", [&](auto tag) {
        using T = typename decltype(tag)::type;
        column_reduce<acc_t<T>>(s, args.rows, args.columns,
                                ValueColumn<T>{static_cast<const T*>(args.x), args.x_stride},
                                {static_cast<acc_t<T>*>(args.sum)}, args.beta);
    });
}

}  // namespace levin::kernels::cuda
