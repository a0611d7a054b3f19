#include <optional>

#include "kernels/backends.h"
#include "kernels/cuda/column_reduce.cuh"
#include "kernels/cuda/lightning_expand.h"
#include "kernels/cuda/lightning_plan.h"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/rotation.cuh"

namespace levin::kernels::cuda {

namespace {

// LRPE of q and k in one go: the angles of a position and a column serve both, in all rows of the batch.
// Columns are heads * dim; a turned row is [heads, cosine half, sine half].
struct LrpePair {
    int operands;  // 2, or 1: the first alone (forward)
    int64_t batch, length, heads, dim, first_position;
    bool silu;
    const float* theta;  // [columns]
    const Bf16* raw[2];
    int64_t raw_stride[2];
    Bf16* turned[2];  // forward: written; backward: gradients of what forward wrote
    // backward
    Bf16* dx[2];
    int64_t dx_stride[2];
    double* partial;  // [chunk of positions, columns]; nullptr: dtheta is not wanted
    int64_t chunk;    // positions
    __host__ __device__ int64_t columns() const { return heads * dim; }
};

constexpr int kUnit = 8, kAcross = 32, kDown = 8;  // columns of a thread; threads of a block

// What a thread needs of its columns at one position; MUFU's sine and cosine of a reduced angle are good to
// 2^-21.
struct Angles {
    float sine[kUnit], cosine[kUnit];
    __device__ Angles(const float (&theta)[kUnit], int64_t position) {
#pragma unroll
        for (int i = 0; i < kUnit; ++i)
            __sincosf(static_cast<float>(reduced_angle(theta[i], position)), &sine[i], &cosine[i]);
    }
};

struct Columns {
    int64_t first;
    int64_t turned;  // in a turned row
    float theta[kUnit];
    bool inside;
    __device__ explicit Columns(const LrpePair& pair) {
        first = (int64_t{blockIdx.y} * kAcross + threadIdx.x) * kUnit;
        inside = first < pair.columns();
        turned = first + first / pair.dim * pair.dim;
#pragma unroll
        for (int i = 0; i < kUnit; ++i) theta[i] = inside ? pair.theta[first + i] : 0.0f;
    }
};

__global__ void __launch_bounds__(256) turn_kernel(const __grid_constant__ LrpePair pair) {
    const Columns columns(pair);
    const int64_t place = int64_t{blockIdx.x} * kDown + threadIdx.y;
    if (!columns.inside || place >= pair.length) return;
    const Angles angles(columns.theta, pair.first_position + place);
    for (int64_t row = 0; row < pair.batch; ++row)
#pragma unroll
        for (int which = 0; which < 2; ++which) {
            if (which >= pair.operands) break;
            const int64_t token = row * pair.length + place;
            const Pack<float, kUnit> x =
                load<kUnit>(pair.raw[which] + token * pair.raw_stride[which] + columns.first);
            Pack<float, kUnit> first, second;
#pragma unroll
            for (int i = 0; i < kUnit; ++i) {
                const float active = pair.silu ? silu(x[i]) : x[i];
                first[i] = active * angles.cosine[i], second[i] = active * angles.sine[i];
            }
            Bf16* to = pair.turned[which] + token * 2 * pair.columns() + columns.turned;
            store<kUnit>(to, first);
            store<kUnit>(to + pair.dim, second);
        }
}

// dx = silu'(x) (d_c cos + d_s sin); partial sums of t silu(x) (d_s cos - d_c sin) over a chunk of positions.
__global__ void __launch_bounds__(256) turn_back_kernel(const __grid_constant__ LrpePair pair) {
    __shared__ double shared[kDown][kAcross * kUnit + 1];
    const Columns columns(pair);
    const int64_t begin = int64_t{blockIdx.x} * pair.chunk, end = min(begin + pair.chunk, pair.length);
    double sum[kUnit] = {};
    for (int64_t place = begin + threadIdx.y; columns.inside && place < end; place += kDown) {
        const int64_t position = pair.first_position + place;
        const Angles angles(columns.theta, position);
        float slope[kUnit] = {};
        for (int64_t row = 0; row < pair.batch; ++row)
#pragma unroll
            for (int which = 0; which < 2; ++which) {
                const int64_t token = row * pair.length + place;
                const Bf16* gradient = pair.turned[which] + token * 2 * pair.columns() + columns.turned;
                const Pack<float, kUnit> d_first = load<kUnit>(gradient),
                                         d_second = load<kUnit>(gradient + pair.dim),
                                         x = load<kUnit>(pair.raw[which] + token * pair.raw_stride[which] +
                                                         columns.first);
                Pack<float, kUnit> dx;
#pragma unroll
                for (int i = 0; i < kUnit; ++i) {
                    const float active = pair.silu ? silu(x[i]) : x[i];
                    dx[i] = d_first[i] * angles.cosine[i] + d_second[i] * angles.sine[i];
                    if (pair.silu) dx[i] *= silu_derivative(x[i]);
                    slope[i] += active * (d_second[i] * angles.cosine[i] - d_first[i] * angles.sine[i]);
                }
                store<kUnit>(pair.dx[which] + token * pair.dx_stride[which] + columns.first, dx);
            }
#pragma unroll
        for (int i = 0; i < kUnit; ++i) sum[i] += static_cast<double>(position) * slope[i];
    }
    if (!pair.partial) return;
#pragma unroll
    for (int i = 0; i < kUnit; ++i) shared[threadIdx.y][threadIdx.x * kUnit + i] = sum[i];
    __syncthreads();
    const int mine = threadIdx.y * kAcross + threadIdx.x;  // a block has as many threads as columns
    const int64_t column = int64_t{blockIdx.y} * kAcross * kUnit + mine;
    if (column >= pair.columns()) return;
    double total = 0;
#pragma unroll
    for (int y = 0; y < kDown; ++y) total += shared[y][mine];
    pair.partial[blockIdx.x * pair.columns() + column] = total;
}

struct AddHalves {
    const Bf16* in;
    Bf16* out;
    int64_t width, in_stride, out_stride;
    template <int N>
    __device__ void apply(int64_t t, int64_t column) const {
        const Bf16* from = in + t * in_stride + column + column / width * width;
        Pack<float, N> sum = load<N>(from);
        const Pack<float, N> second = load<N>(from + width);
#pragma unroll
        for (int i = 0; i < N; ++i) sum[i] += second[i];
        store<N>(out + t * out_stride + column, sum);
    }
};

// q or k, activated where that is not left to the kernels that follow.
class Activated {
public:
    Activated(const Stream& stream, const LightningShape& shape, const void* raw, int64_t raw_stride)
        : shape_(shape), raw_(raw), raw_stride_(raw_stride) {
        if (shape.qk_activation == Activation::none || shape.qk_activation == Activation::silu) return;
        memory_.emplace(use(stream), tokens() * columns() * sizeof(Bf16));
        cuda::activation_forward(stream, {tokens(), columns(), shape.key_dim, shape.dtype,
                                          shape.qk_activation, raw, raw_stride, memory_->as<>(), columns()});
    }
    const Bf16* data() const { return memory_ ? memory_->as<Bf16>() : static_cast<const Bf16*>(raw_); }
    int64_t stride() const { return memory_ ? columns() : raw_stride_; }
    // dx, the gradient of data(), becomes that of the raw rows.
    void backward(const Stream& stream, void* dx, int64_t dx_stride) const {
        if (memory_)
            cuda::activation_backward(
                stream, {tokens(), columns(), shape_.key_dim, shape_.dtype, shape_.qk_activation, raw_,
                         raw_stride_, dx, dx_stride, dx, dx_stride});
    }

private:
    int64_t tokens() const { return shape_.batch * shape_.length; }
    int64_t columns() const { return shape_.heads * shape_.key_dim; }
    LightningShape shape_;
    const void* raw_;
    int64_t raw_stride_;
    std::optional<Scratch> memory_;
};

// LRPE of raw[0], and of raw[1] where there is one, into `turned`, one behind the other.
LrpePair pair_of(const LightningShape& shape, std::initializer_list<const Activated*> raw, Bf16* turned) {
    LrpePair work{};
    work.batch = shape.batch, work.length = shape.length, work.heads = shape.heads, work.dim = shape.key_dim;
    work.first_position = shape.first_position;
    work.silu = shape.qk_activation == Activation::silu;
    work.theta = static_cast<const float*>(shape.theta);
    for (const Activated* x : raw) {
        work.raw[work.operands] = x->data();
        work.raw_stride[work.operands] = x->stride();
        work.turned[work.operands] =
            turned + work.operands * shape.batch * shape.length * shape.heads * shape.key_width();
        ++work.operands;
    }
    return work;
}

dim3 turn_grid(const LightningShape& shape, int64_t positions_of_a_block) {
    return dim3(static_cast<unsigned>(ceil_div(shape.length, positions_of_a_block)),
                static_cast<unsigned>(ceil_div(shape.heads * shape.key_dim, kAcross * kUnit)));
}

void turn(const Stream& stream, const LightningShape& shape, const LrpePair& work) {
    turn_kernel<<<turn_grid(shape, kDown), dim3(kAcross, kDown), 0, use(stream)>>>(work);
    LEVIN_CUDA_LAUNCHED();
}

// q and k as the attention kernels take them.
class Expanded {
public:
    template <class Args>
    Expanded(const Stream& stream, const Args& args)
        : stream_(stream),
          shape_(args.shape),
          q_(stream, args.shape, args.q, args.q_stride),
          k_(stream, args.shape, args.k, args.k_stride),
          turned_(use(stream), shape_.theta ? 2 * turned_size() * sizeof(Bf16) : 0) {
        if (shape_.theta && turned_size() > 0) turn(stream, shape_, pair(turned_.as<Bf16>()));
    }
    template <class Args>
    Args plain(const Args& args) const {
        Args plain = args;
        plain.shape = expanded_shape(shape_);
        plain.q = shape_.theta ? turned_.as<Bf16>() : q_.data();
        plain.k = shape_.theta ? turned_.as<Bf16>() + turned_size() : k_.data();
        plain.q_stride = shape_.theta ? row() : q_.stride();
        plain.k_stride = shape_.theta ? row() : k_.stride();
        return plain;
    }
    void backward(const LightningBackward& args, void (*attention)(const Stream&, const LightningBackward&)) {
        LightningBackward inner = plain(args);
        if (shape_.theta && turned_size() > 0) {
            const Scratch gradients(use(stream_), 2 * turned_size() * sizeof(Bf16));
            inner.dq = gradients.as<Bf16>(), inner.dk = gradients.as<Bf16>() + turned_size();
            inner.dq_stride = inner.dk_stride = row();
            attention(stream_, inner);
            turn_back(args, gradients.as<Bf16>());
        } else {
            attention(stream_, inner);
        }
        q_.backward(stream_, args.dq, args.dq_stride);
        k_.backward(stream_, args.dk, args.dk_stride);
    }

private:
    int64_t row() const { return shape_.heads * shape_.key_width(); }
    int64_t turned_size() const { return shape_.batch * shape_.length * row(); }
    LrpePair pair(Bf16* turned) const { return pair_of(shape_, {&q_, &k_}, turned); }
    void turn_back(const LightningBackward& args, Bf16* gradients) const {
        const cudaStream_t s = use(stream_);
        LrpePair work = pair(gradients);
        work.dx[0] = static_cast<Bf16*>(args.dq), work.dx[1] = static_cast<Bf16*>(args.dk);
        work.dx_stride[0] = args.dq_stride, work.dx_stride[1] = args.dk_stride;
        // Chunks depend on the length alone, so that the sum has one order; 128 of them fill a chip.
        work.chunk = shape_.length <= 64 * 128 ? 64 : ceil_div(shape_.length, 128);
        const int64_t chunks = ceil_div(shape_.length, work.chunk);
        const Scratch partial(s, args.dtheta ? chunks * work.columns() * sizeof(double) : 0);
        work.partial = args.dtheta ? partial.as<double>() : nullptr;
        turn_back_kernel<<<turn_grid(shape_, work.chunk), dim3(kAcross, kDown), 0, s>>>(work);
        LEVIN_CUDA_LAUNCHED();
        if (!args.dtheta) return;
        column_finish_kernel<1><<<static_cast<unsigned>(ceil_div(work.columns(), 128)), 128, 0, s>>>(
            work.columns(), chunks, partial.as<double>(),
            ColumnOutputs<float, 1>{static_cast<float*>(args.dtheta)}, args.beta);
        LEVIN_CUDA_LAUNCHED();
    }

    Stream stream_;
    LightningShape shape_;
    Activated q_, k_;
    Scratch turned_;
};

}  // namespace

void expanded_forward(const Stream& stream, const LightningForward& args,
                      void (*attention)(const Stream&, const LightningForward&)) {
    attention(stream, Expanded(stream, args).plain(args));
}

void expanded_state(const Stream& stream, const LightningState& args,
                    void (*attention)(const Stream&, const LightningState&)) {
    if (!args.state && !args.kept_states) return;  // nobody wants anything
    const LightningShape& shape = args.shape;
    const Activated keys(stream, shape, args.keys, args.key_stride);
    const int64_t row = shape.heads * shape.key_width();
    const Scratch turned(use(stream), shape.theta ? shape.batch * shape.length * row * sizeof(Bf16) : 0);
    LightningState plain = args;
    plain.shape = expanded_shape(shape);
    plain.keys = keys.data(), plain.key_stride = keys.stride();
    if (shape.theta) {
        plain.keys = turned.as<Bf16>(), plain.key_stride = row;
        if (shape.batch * shape.length > 0) turn(stream, shape, pair_of(shape, {&keys}, turned.as<Bf16>()));
    }
    attention(stream, plain);
}

void expanded_backward(const Stream& stream, const LightningBackward& args,
                       void (*attention)(const Stream&, const LightningBackward&)) {
    Expanded(stream, args).backward(args, attention);
}

void add_halves_of_heads(cudaStream_t stream, int64_t tokens, int64_t heads, int64_t width, const Bf16* in,
                         Bf16* out, int64_t out_stride) {
    map_rows<Bf16>(stream, tokens, heads * width, true,
                   AddHalves{in, out, width, 2 * heads * width, out_stride});
}

}  // namespace levin::kernels::cuda
