// A look at every kernel call, for benchmarks: which, with what arguments, for how long.
#pragma once

#include "kernels/base/stream.h"

namespace levin::kernels {

class KernelObserver {
public:
    virtual ~KernelObserver() = default;
    // Around the queueing of a kernel: `name` as in kernels.def, `args` its argument struct.
    virtual void before(const char* name, const Stream& stream, const void* args) = 0;
    virtual void after(const char* name, const Stream& stream) = 0;
};

// From now on sees every call of the process; nullptr: none. Not while kernels are being called on another
// thread. Returns the one before.
KernelObserver* set_kernel_observer(KernelObserver* observer);

}  // namespace levin::kernels
