// Lightning attention: picks the kernel (lightning_plan.h). Every type and option can go through the tiled
// scan.
#include "kernels/backends.h"
#include "kernels/cuda/column_reduce.cuh"
#include "kernels/cuda/lightning_expand.h"
#include "kernels/cuda/lightning_plan.h"
#include "kernels/cuda/lightning_scan.cuh"
#include "kernels/cuda/sm80_bf16_lightning_scan.h"
#include "kernels/cuda/sm90_bf16_lightning.h"

namespace levin::kernels::cuda {

namespace {

template <class T>
ScanArgs<T> scan_of(const LightningShape& shape) {
    ScanArgs<T> scan{};
    scan.theta = static_cast<const acc_t<T>*>(shape.theta);
    scan.slopes = shape.slopes;
    scan.heads = shape.heads;
    scan.length = shape.length;
    scan.first_position = shape.first_position;
    scan.cu_seqlens = shape.cu_seqlens;
    scan.state_size = shape.key_width() * shape.value_dim;
    return scan;
}

template <class T>
struct Operands {
    ScanOperand<T> q, k, v, d_o;
};
template <class T, class Args>
Operands<T> operands_of(const Args& args, const void* d_o) {
    const LightningShape& shape = args.shape;
    const int key_dim = static_cast<int>(shape.key_dim), value_dim = static_cast<int>(shape.value_dim);
    return {{static_cast<const T*>(args.q), args.q_stride, key_dim, shape.qk_activation},
            {static_cast<const T*>(args.k), args.k_stride, key_dim, shape.qk_activation},
            {static_cast<const T*>(args.v), args.v_stride, value_dim, shape.v_activation},
            {static_cast<const T*>(d_o), shape.heads * shape.value_dim, value_dim, Activation::none}};
}

void check(const LightningShape& shape) {
    if (shape.key_width() < 1 || shape.key_width() > 256)
        fail_arguments("lightning attention", "key width must be 1..256", shape.key_width());
    if (shape.value_dim < 1 || shape.value_dim > 256)
        fail_arguments("lightning attention", "value_dim must be 1..256", shape.value_dim);
    if (shape.cu_seqlens && shape.batch != 1)
        fail_arguments("lightning attention", "packed documents need batch 1", shape.batch);
}

template <class T>
void forward(const Stream& stream, const LightningForward& args) {
    using A = acc_t<T>;
    const LightningShape& shape = args.shape;
    const Operands<T> operands = operands_of<T>(args, nullptr);
    ScanArgs<T> scan = scan_of<T>(shape);
    scan.x = operands.q;
    scan.y = operands.k;
    scan.z = operands.v;
    scan.out = static_cast<T*>(args.o);
    scan.out_stride = shape.heads * shape.value_dim;
    scan.rotate_inner = shape.theta != nullptr;
    scan.inner = static_cast<int>(shape.key_width());
    scan.state_row = shape.value_dim;
    scan.state_column = 1;
    scan.initial = static_cast<const A*>(args.initial_state);
    scan.final = static_cast<A*>(args.final_state);
    launch_scan(stream, shape.sequences(), scan);
}

template <class T>
void state(const Stream& stream, const LightningState& args) {
    using A = acc_t<T>;
    const LightningShape& shape = args.shape;
    ScanArgs<T> scan = scan_of<T>(shape);
    scan.y = ScanOperand<T>{static_cast<const T*>(args.keys), args.key_stride,
                            static_cast<int>(shape.key_dim), shape.qk_activation};
    scan.x = scan.y;  // for an output that is not formed
    scan.z = ScanOperand<T>{static_cast<const T*>(args.values), args.value_stride,
                            static_cast<int>(shape.value_dim),
                            args.mirrored ? Activation::none : shape.v_activation};
    scan.reverse = args.mirrored;
    scan.rotate_inner = shape.theta != nullptr;
    scan.inner = static_cast<int>(shape.key_width());
    scan.state_row = shape.value_dim;
    scan.state_column = 1;
    scan.final = static_cast<A*>(args.state);
    launch_scan(stream, shape.sequences(), scan);
}

template <class T>
void backward(const Stream& stream, const LightningBackward& args) {
    using A = acc_t<T>;
    const LightningShape& shape = args.shape;
    const Operands<T> operands = operands_of<T>(args, args.d_o);
    const bool rotate = shape.theta != nullptr;
    const int64_t theta_size = shape.heads * shape.key_dim;
    const bool want_theta = rotate && args.dtheta;
    Scratch dtheta(use(stream), want_theta ? 2 * shape.sequences() * theta_size * sizeof(double) : 0);

    ScanArgs<T> dq = scan_of<T>(shape);
    dq.x = operands.d_o;
    dq.y = operands.v;
    dq.z = operands.k;
    dq.source = operands.q;
    dq.out = static_cast<T*>(args.dq);
    dq.out_stride = args.dq_stride;
    dq.rotate_columns = rotate;
    dq.inner = static_cast<int>(shape.value_dim);
    dq.state_row = 1;
    dq.state_column = shape.value_dim;
    dq.initial = static_cast<const A*>(args.initial_state);
    dq.dtheta = dtheta.as<double>();
    launch_scan(stream, shape.sequences(), dq);

    ScanArgs<T> dk = dq;
    dk.reverse = true;
    dk.x = operands.v;
    dk.y = operands.d_o;
    dk.z = operands.q;
    dk.source = operands.k;
    dk.out = static_cast<T*>(args.dk);
    dk.out_stride = args.dk_stride;
    dk.initial = static_cast<const A*>(args.d_final_state);
    if (want_theta) dk.dtheta = dtheta.as<double>() + shape.sequences() * theta_size;
    launch_scan(stream, shape.sequences(), dk);

    ScanArgs<T> dv = scan_of<T>(shape);
    dv.reverse = true;
    dv.x = operands.k;
    dv.y = operands.q;
    dv.z = operands.d_o;
    dv.source = operands.v;
    dv.out = static_cast<T*>(args.dv);
    dv.out_stride = args.dv_stride;
    dv.rotate_inner = rotate;
    dv.inner = static_cast<int>(shape.key_width());
    dv.state_row = shape.value_dim;
    dv.state_column = 1;
    dv.initial = static_cast<const A*>(args.d_final_state);
    dv.final = static_cast<A*>(args.d_initial_state);
    launch_scan(stream, shape.sequences(), dv);

    if (want_theta) {
        column_finish_kernel<1><<<static_cast<unsigned>(ceil_div(theta_size, 128)), 128, 0, use(stream)>>>(
            theta_size, 2 * shape.sequences(), dtheta.as<double>(),
            ColumnOutputs<A, 1>{static_cast<A*>(args.dtheta)}, args.beta);
        LEVIN_CUDA_LAUNCHED();
    }
}

LightningFacts facts_of(const Stream& stream, std::initializer_list<Rows> rows) {
    return {vectorizable<Bf16>(rows), max_shared_memory(stream.device.index), is_hopper(stream.device.index)};
}
LightningFacts facts_of(const Stream& stream, const LightningForward& args) {
    return facts_of(stream,
                    {{args.q, args.q_stride}, {args.k, args.k_stride}, {args.v, args.v_stride}, {args.o, 0}});
}

}  // namespace

int64_t lightning_states_to_keep(const Stream& stream, const LightningForward& args) {
    if (!sm90_lightning_fits(args.shape, facts_of(stream, args))) return 0;
    return sm90_states_to_keep(stream, expanded_shape(args.shape));
}

void lightning_forward(const Stream& stream, const LightningForward& args) {
    check(args.shape);
    const LightningFacts facts = facts_of(stream, args);
    const bool hopper = sm90_lightning_fits(args.shape, facts);
    if (hopper || mma_scan_fits(args.shape, facts)) {
        const auto attention = hopper ? sm90_lightning_forward : mma_scan_forward;
        return needs_expansion(args.shape) ? expanded_forward(stream, args, attention)
                                           : attention(stream, args);
    }
    by_type(args.shape.dtype, "lightning_forward",
            [&](auto tag) { forward<typename decltype(tag)::type>(stream, args); });
}

void lightning_state(const Stream& stream, const LightningState& args) {
    check(args.shape);
    const LightningFacts facts =
        facts_of(stream, {{args.keys, args.key_stride}, {args.values, args.value_stride}});
    const bool hopper = sm90_lightning_fits(args.shape, facts);
    if (hopper || mma_scan_fits(args.shape, facts)) {
        const auto attention = hopper ? sm90_lightning_state : mma_scan_state;
        return needs_expansion(args.shape) ? expanded_state(stream, args, attention)
                                           : attention(stream, args);
    }
    if (!args.state) return;
    by_type(args.shape.dtype, "lightning_state",
            [&](auto tag) { state<typename decltype(tag)::type>(stream, args); });
}

void lightning_backward(const Stream& stream, const LightningBackward& args) {
    check(args.shape);
    const LightningFacts facts = facts_of(stream, {{args.q, args.q_stride},
                                                   {args.k, args.k_stride},
                                                   {args.v, args.v_stride},
                                                   {args.d_o, 0},
                                                   {args.dq, args.dq_stride},
                                                   {args.dk, args.dk_stride},
                                                   {args.dv, args.dv_stride}});
    const bool hopper = sm90_lightning_fits(args.shape, facts);
    if (!hopper && args.await_d_final) args.await_d_final();
    if (hopper || mma_scan_fits(args.shape, facts)) {
        const auto attention = hopper ? sm90_lightning_backward : mma_scan_backward;
        return needs_expansion(args.shape) ? expanded_backward(stream, args, attention)
                                           : attention(stream, args);
    }
    by_type(args.shape.dtype, "lightning_backward",
            [&](auto tag) { backward<typename decltype(tag)::type>(stream, args); });
}

}  // namespace levin::kernels::cuda
