// The functions of cuDNN (and of NVRTC, which the headers of its front end know too) that cudnn_attention.cpp
// calls, passed on to the libraries opened at run time. Where a library or a function is missing each of them
// fails, and attention goes another way.
#include "kernels/cuda/cudnn_library.h"

#include <cudnn.h>
#include <cudnn_backend.h>
#include <dlfcn.h>
#include <nvrtc.h>

#include <cstdlib>
#include <initializer_list>
#include <string>

namespace levin::kernels::cuda {

namespace {

void* open_first(std::initializer_list<const char*> names) {
    for (const char* name : names)
        if (void* library = dlopen(name, RTLD_NOW | RTLD_LOCAL)) return library;
    return nullptr;
}

void* cudnn_library() {
    static void* const library = [] {
        const char* chosen = std::getenv("LEVIN_CUDNN");
        if (chosen && std::string(chosen) == "off") return static_cast<void*>(nullptr);
        if (chosen && *chosen) return open_first({chosen});
        return open_first({"libcudnn.so.9"});
    }();
    return library;
}

void* nvrtc_library() {
    static void* const library = open_first({"libnvrtc.so.13", "libnvrtc.so.12"});
    return library;
}

// The function of this name and type, or null.
template <class Function>
Function* function_in(void* library, const char* name) {
    return library ? reinterpret_cast<Function*>(dlsym(library, name)) : nullptr;
}

}  // namespace

bool cudnn_library_present() {
    static const bool present = [] {
        const auto version = function_in<size_t()>(cudnn_library(), "cudnnGetVersion");
        return version && version() >= 90100;  // causal attention with grouped heads, forward and backward
    }();
    return present;
}

}  // namespace levin::kernels::cuda

#define LEVIN_FORWARD(library, failure, result, name, parameters, arguments)                              \
    extern "C" result name parameters {                                                                   \
        static auto* const function =                                                                     \
            levin::kernels::cuda::function_in<result parameters>(levin::kernels::cuda::library(), #name); \
        return function ? function arguments : failure;                                                   \
    }
#define LEVIN_CUDNN(name, parameters, arguments) \
    LEVIN_FORWARD(cudnn_library, CUDNN_STATUS_NOT_INITIALIZED, cudnnStatus_t, name, parameters, arguments)
#define LEVIN_NVRTC(name, parameters, arguments) \
    LEVIN_FORWARD(nvrtc_library, NVRTC_ERROR_INTERNAL_ERROR, nvrtcResult, name, parameters, arguments)

LEVIN_FORWARD(cudnn_library, size_t{0}, size_t, cudnnGetVersion, (), ())
LEVIN_FORWARD(cudnn_library, "cuDNN is not there", const char*, cudnnGetErrorString, (cudnnStatus_t status),
              (status))
LEVIN_FORWARD(cudnn_library, void(), void, cudnnGetLastErrorString, (char* message, size_t size),
              (message, size))
LEVIN_CUDNN(cudnnCreate, (cudnnHandle_t * handle), (handle))
LEVIN_CUDNN(cudnnSetStream, (cudnnHandle_t handle, cudaStream_t stream), (handle, stream))
LEVIN_CUDNN(cudnnGetStream, (cudnnHandle_t handle, cudaStream_t* stream), (handle, stream))
LEVIN_CUDNN(cudnnBackendCreateDescriptor, (cudnnBackendDescriptorType_t type, cudnnBackendDescriptor_t* made),
            (type, made))
LEVIN_CUDNN(cudnnBackendDestroyDescriptor, (cudnnBackendDescriptor_t descriptor), (descriptor))
LEVIN_CUDNN(cudnnBackendFinalize, (cudnnBackendDescriptor_t descriptor), (descriptor))
LEVIN_CUDNN(cudnnBackendSetAttribute,
            (cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
             cudnnBackendAttributeType_t type, int64_t count, const void* values),
            (descriptor, name, type, count, values))
LEVIN_CUDNN(cudnnBackendGetAttribute,
            (cudnnBackendDescriptor_t const descriptor, cudnnBackendAttributeName_t name,
             cudnnBackendAttributeType_t type, int64_t wanted, int64_t* count, void* values),
            (descriptor, name, type, wanted, count, values))
LEVIN_CUDNN(cudnnBackendExecute,
            (cudnnHandle_t handle, cudnnBackendDescriptor_t plan, cudnnBackendDescriptor_t variant),
            (handle, plan, variant))
LEVIN_NVRTC(nvrtcCreateProgram,
            (nvrtcProgram * program, const char* source, const char* name, int count,
             const char* const* headers, const char* const* names),
            (program, source, name, count, headers, names))
LEVIN_NVRTC(nvrtcDestroyProgram, (nvrtcProgram * program), (program))
LEVIN_NVRTC(nvrtcCompileProgram, (nvrtcProgram program, int count, const char* const* options),
            (program, count, options))
LEVIN_NVRTC(nvrtcGetCUBINSize, (nvrtcProgram program, size_t* size), (program, size))
LEVIN_NVRTC(nvrtcGetCUBIN, (nvrtcProgram program, char* code), (program, code))
LEVIN_NVRTC(nvrtcGetProgramLogSize, (nvrtcProgram program, size_t* size), (program, size))
LEVIN_NVRTC(nvrtcGetProgramLog, (nvrtcProgram program, char* log), (program, log))
