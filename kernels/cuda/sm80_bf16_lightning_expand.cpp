// What the tensor-core scan leaves to other kernels: LRPE, and activations besides silu, on q and k.
#include <optional>

#include "kernels/backends.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/lightning_plan.h"
#include "kernels/cuda/sm80_bf16_lightning_scan.h"

namespace levin::kernels::cuda {

namespace {

constexpr size_t kElement = 2;  // bytes of a bf16

// q or k as the state sees it, [tokens, heads, key_width], activated and turned.
class Expanded {
public:
    Expanded(const Stream& stream, const LightningShape& shape, const void* raw, int64_t raw_stride)
        : shape_(shape), raw_(raw), raw_stride_(raw_stride), active_(raw), active_stride_(raw_stride) {
        const cudaStream_t s = use(stream);
        if (shape.qk_activation != Activation::none) {
            active_memory_.emplace(s, tokens() * columns() * kElement);
            active_ = active_memory_->as<>();
            active_stride_ = columns();
            cuda::activation_forward(
                stream, {tokens(), columns(), shape.key_dim, shape.dtype, shape.qk_activation, raw,
                         raw_stride, active_memory_->as<>(), columns()});
        }
        if (!shape.theta) return;
        turned_memory_.emplace(s, tokens() * stride() * kElement);
        cuda::lrpe_forward(
            stream, {tokens(), shape.length, shape.heads, shape.key_dim, shape.dtype, shape.first_position,
                     active_, active_stride_, shape.theta, turned_memory_->as<>()});
    }
    const void* data() const { return shape_.theta ? turned_memory_->as<>() : active_; }
    int64_t stride() const { return shape_.heads * shape_.key_width(); }
    int64_t tokens() const { return shape_.batch * shape_.length; }
    int64_t columns() const { return shape_.heads * shape_.key_dim; }

    // From the gradient of data() to that of the raw rows; without LRPE `gradient` is dx itself.
    void backward(const Stream& stream, const void* gradient, void* dx, int64_t dx_stride, void* dtheta,
                  double beta) const {
        if (shape_.theta)
            cuda::lrpe_backward(stream, {tokens(), shape_.length, shape_.heads, shape_.key_dim, shape_.dtype,
                                         shape_.first_position, active_, active_stride_, shape_.theta,
                                         gradient, dx, dx_stride, dtheta, beta});
        if (shape_.qk_activation != Activation::none)
            cuda::activation_backward(
                stream, {tokens(), columns(), shape_.key_dim, shape_.dtype, shape_.qk_activation, raw_,
                         raw_stride_, dx, dx_stride, dx, dx_stride});
    }

private:
    LightningShape shape_;
    const void* raw_;
    int64_t raw_stride_;
    const void* active_;
    int64_t active_stride_;
    std::optional<Scratch> active_memory_, turned_memory_;
};

LightningShape plain_shape(const LightningShape& shape) {
    LightningShape plain = shape;
    plain.key_dim = shape.key_width();
    plain.theta = nullptr;
    plain.qk_activation = Activation::none;
    return plain;
}

}  // namespace

void mma_lightning_forward(const Stream& stream, const LightningForward& args) {
    if (!mma_scan_needs_expansion(args.shape)) return mma_scan_forward(stream, args);
    const Expanded q(stream, args.shape, args.q, args.q_stride), k(stream, args.shape, args.k, args.k_stride);
    LightningForward plain = args;
    plain.shape = plain_shape(args.shape);
    plain.q = q.data(), plain.q_stride = q.stride();
    plain.k = k.data(), plain.k_stride = k.stride();
    mma_scan_forward(stream, plain);
}

void mma_lightning_backward(const Stream& stream, const LightningBackward& args) {
    if (!mma_scan_needs_expansion(args.shape)) return mma_scan_backward(stream, args);
    const Expanded q(stream, args.shape, args.q, args.q_stride), k(stream, args.shape, args.k, args.k_stride);
    LightningBackward plain = args;
    plain.shape = plain_shape(args.shape);
    plain.q = q.data(), plain.q_stride = q.stride();
    plain.k = k.data(), plain.k_stride = k.stride();
    const size_t bytes = args.shape.theta ? static_cast<size_t>(q.tokens() * q.stride()) * kElement : 0;
    const Scratch dq(use(stream), bytes), dk(use(stream), bytes);
    if (args.shape.theta) {
        plain.dq = dq.as<>(), plain.dq_stride = q.stride();
        plain.dk = dk.as<>(), plain.dk_stride = k.stride();
    }
    mma_scan_backward(stream, plain);
    q.backward(stream, plain.dq, args.dq, args.dq_stride, args.dtheta, args.beta);
    k.backward(stream, plain.dk, args.dk, args.dk_stride, args.dtheta, 1);
}

}  // namespace levin::kernels::cuda
