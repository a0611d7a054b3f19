// name(stream, args) for every kernel: the device of the stream picks the back end.
#include "kernels/backends.h"
#include "kernels/observer.h"

namespace levin::kernels {

namespace {
KernelObserver* observer = nullptr;
}

KernelObserver* set_kernel_observer(KernelObserver* next) {
    KernelObserver* previous = observer;
    observer = next;
    return previous;
}

namespace {

// True where a call has been answered here, the same for every back end.
template <class Args>
bool answered(const Stream&, const Args&) {
    return false;
}

// Attention without a token: what enters leaves.
bool without_tokens(const LightningShape& shape) { return shape.batch * shape.length == 0; }
void hand_over(const Stream& stream, const LightningShape& shape, const void* from, void* to) {
    const int64_t count = shape.sequences() * shape.heads * shape.key_width() * shape.value_dim;
    if (!to || to == from || count == 0) return;
    const DType acc = accumulator_of(shape.dtype);
    if (from)
        copy(stream, {1, count, acc, from, count, acc, to, count});
    else
        fill(stream, {count, acc, to, 0});
}
bool answered(const Stream& stream, const LightningForward& args) {
    if (!without_tokens(args.shape)) return false;
    hand_over(stream, args.shape, args.initial_state, args.final_state);
    return true;
}
bool answered(const Stream& stream, const LightningState& args) {
    if (!without_tokens(args.shape)) return false;
    hand_over(stream, args.shape, nullptr, args.state);
    return true;
}
bool answered(const Stream& stream, const LightningBackward& args) {
    if (!without_tokens(args.shape)) return false;
    if (args.await_d_final) args.await_d_final();
    hand_over(stream, args.shape, args.d_final_state, args.d_initial_state);
    if (!args.shape.theta || !args.dtheta) return true;
    const int64_t count = args.shape.heads * args.shape.key_dim;
    const DType acc = accumulator_of(args.shape.dtype);
    if (args.beta == 0)
        fill(stream, {count, acc, args.dtheta, 0});
    else
        add(stream, {count, acc, args.beta, args.dtheta, 0, nullptr, args.dtheta});
    return true;
}

}  // namespace

#define LEVIN_KERNEL(name, Args)                              \
    void name(const Stream& stream, const Args& args) {       \
        if (answered(stream, args)) return;                   \
        if (observer) observer->before(#name, stream, &args); \
        if (stream.device.is_cpu())                           \
            cpu::name(args);                                  \
        else                                                  \
            cuda::name(stream, args);                         \
        if (observer) observer->after(#name, stream);         \
    }
#include "kernels/kernels.def"
#undef LEVIN_KERNEL

int64_t lightning_states_to_keep(const Stream& stream, const LightningForward& args) {
    if (stream.device.is_cpu() || without_tokens(args.shape)) return 0;
    return cuda::lightning_states_to_keep(stream, args);
}

GemmTuning gemm_tuning(const Stream& stream, const Gemm& args) {
    return stream.device.is_cpu() ? GemmTuning{} : cuda::gemm_tuning(stream, args);
}

}  // namespace levin::kernels
