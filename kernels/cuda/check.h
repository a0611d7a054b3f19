// Errors of foreign calls, and the few host helpers every CUDA file uses. No fmt here: nvcc reads this
// header.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/base/stream.h"

namespace levin::kernels::cuda {

// Throw Error(internal); the message names the call, the error and its place.
[[noreturn]] void fail_cuda(cudaError_t error, const char* call, const char* file, int line);
[[noreturn]] void fail_cublas(int status, const char* call, const char* file, int line);
// Throws Error(internal): arguments a kernel cannot take (a bug of the caller).
[[noreturn]] void fail_arguments(const char* kernel, const char* what, int64_t value);

// Makes the stream's device the current one and returns the CUDA handle.
cudaStream_t use(const Stream& stream);

// Largest dynamic shared memory a block of `device` may have, in bytes; its number of multiprocessors.
size_t max_shared_memory(int device);
int multiprocessors(int device);
// Compute capability 9.0, the only one that runs code made for sm_90a, in a build that has it
// (LEVIN_CUDA_ARCH).
bool is_hopper(int device);

// Scratch memory from the driver's stream-ordered pool: usable by work queued on `stream` until the object
// dies. The pool keeps what it freed, so that a training step allocates nothing after its first run.
class Scratch {
public:
    Scratch(cudaStream_t stream, size_t bytes);
    ~Scratch();
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    template <class T = void>
    T* as() const {
        return static_cast<T*>(data_);
    }

private:
    cudaStream_t stream_;
    void* data_ = nullptr;
};

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace levin::kernels::cuda

#define LEVIN_CUDA_CHECK(call)                                                         \
    do {                                                                               \
        const cudaError_t levin_error = (call);                                        \
        if (levin_error != cudaSuccess)                                                \
            ::levin::kernels::cuda::fail_cuda(levin_error, #call, __FILE__, __LINE__); \
    } while (0)

#define LEVIN_CUBLAS_CHECK(call)                                                                             \
    do {                                                                                                     \
        const int levin_status = static_cast<int>(call);                                                     \
        if (levin_status != 0) ::levin::kernels::cuda::fail_cublas(levin_status, #call, __FILE__, __LINE__); \
    } while (0)

// After a launch: a bad configuration shows here, a fault inside the kernel at the next synchronisation.
#define LEVIN_CUDA_LAUNCHED() LEVIN_CUDA_CHECK(cudaGetLastError())
