// name(stream, args) for every kernel: the device of the stream picks the back end.
#include "kernels/backends.h"

namespace levin::kernels {

#define LEVIN_KERNEL(name, Args)                        \
    void name(const Stream& stream, const Args& args) { \
        if (stream.device.is_cpu())                     \
            cpu::name(args);                            \
        else                                            \
            cuda::name(stream, args);                   \
    }
#include "kernels/kernels.def"
#undef LEVIN_KERNEL

GemmTuning gemm_tuning(const Stream& stream, const Gemm& args) {
    return stream.device.is_cpu() ? GemmTuning{} : cuda::gemm_tuning(stream, args);
}

}  // namespace levin::kernels
