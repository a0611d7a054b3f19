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

#define LEVIN_KERNEL(name, Args)                              \
    void name(const Stream& stream, const Args& args) {       \
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
    return stream.device.is_cpu() ? 0 : cuda::lightning_states_to_keep(stream, args);
}

GemmTuning gemm_tuning(const Stream& stream, const Gemm& args) {
    return stream.device.is_cpu() ? GemmTuning{} : cuda::gemm_tuning(stream, args);
}

}  // namespace levin::kernels
