// Raw memory, streams and device queries. Caching is the business of core.
#include "kernels/device_memory.h"

#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <fmt/format.h>
#include <nvtx3/nvToolsExt.h>

#include <mutex>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/cuda/check.h"

namespace levin::kernels::cuda {

namespace {

const char* file_name(const char* path) {
    const char* name = path;
    for (const char* c = path; *c; ++c)
        if (*c == '/') name = c + 1;
    return name;
}

// What never changes about a device, and what is made once for it.
struct DeviceState {
    cudaStream_t stream = nullptr;
    int shared_memory = 0, multiprocessors = 0, major = 0, minor = 0;
};

const DeviceState& state_of(int index) {
    static std::mutex mutex;
    static std::vector<DeviceState*>
        states;  // never freed: streams outlive every static destructor that may use them
    const std::lock_guard lock(mutex);
    if (index >= static_cast<int>(states.size())) states.resize(index + 1, nullptr);
    if (!states[index]) {
        std::string why;
        const int count = device_count(&why);
        LEVIN_REQUIRE(index < count, "device",
                      "cuda:{} was asked for, but {}; use trainer.device=cpu or another index", index,
                      count == 0 ? why : fmt::format("this machine has {} GPU(s)", count));
        auto* state = new DeviceState;
        LEVIN_CUDA_CHECK(cudaSetDevice(index));
        LEVIN_CUDA_CHECK(cudaStreamCreateWithFlags(&state->stream, cudaStreamNonBlocking));
        LEVIN_CUDA_CHECK(
            cudaDeviceGetAttribute(&state->shared_memory, cudaDevAttrMaxSharedMemoryPerBlockOptin, index));
        LEVIN_CUDA_CHECK(
            cudaDeviceGetAttribute(&state->multiprocessors, cudaDevAttrMultiProcessorCount, index));
        LEVIN_CUDA_CHECK(cudaDeviceGetAttribute(&state->major, cudaDevAttrComputeCapabilityMajor, index));
        LEVIN_CUDA_CHECK(cudaDeviceGetAttribute(&state->minor, cudaDevAttrComputeCapabilityMinor, index));
        cudaMemPool_t pool;
        LEVIN_CUDA_CHECK(cudaDeviceGetDefaultMemPool(&pool, index));
        uint64_t keep = UINT64_MAX;
        LEVIN_CUDA_CHECK(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep));
        states[index] = state;
    }
    return *states[index];
}

}  // namespace

void fail_cuda(cudaError_t error, const char* call, const char* file, int line) {
    fail(Fault::internal, "cuda", "{} failed at {}:{}: {} ({})", call, file_name(file), line,
         cudaGetErrorString(error), cudaGetErrorName(error));
}

void fail_cublas(int status, const char* call, const char* file, int line) {
    fail(Fault::internal, "cublas", "{} failed at {}:{}: {} (status {})", call, file_name(file), line,
         cublasLtGetStatusString(static_cast<cublasStatus_t>(status)), status);
}

void fail_arguments(const char* kernel, const char* what, int64_t value) {
    fail(Fault::internal, fmt::format("cuda {}", kernel), "{}: got {}", what, value);
}

cudaStream_t use(const Stream& stream) {
    LEVIN_CUDA_CHECK(cudaSetDevice(stream.device.index));
    return static_cast<cudaStream_t>(stream.handle);
}

size_t max_shared_memory(int device) { return static_cast<size_t>(state_of(device).shared_memory); }
int multiprocessors(int device) { return state_of(device).multiprocessors; }
bool is_hopper(int device) {
#ifdef LEVIN_HOPPER
    const DeviceState& state = state_of(device);
    return state.major == 9 && state.minor == 0;
#else
    return false;  // built without Hopper's kernels, which are empty then
#endif
}

Scratch::Scratch(cudaStream_t stream, size_t bytes) : stream_(stream) {
    if (bytes == 0) return;
    if (ScratchSource* source = scratch_source()) {
        data_ = source->take(bytes);
        return;
    }
    cudaError_t error = cudaMallocAsync(&data_, bytes, stream);
    if (error == cudaErrorMemoryAllocation) {
        cudaGetLastError();  // not sticky: the device goes on
        Device device{DeviceType::cuda, 0};
        LEVIN_CUDA_CHECK(cudaGetDevice(&device.index));
        const std::string table = reclaim_memory(device);
        error = cudaMallocAsync(&data_, bytes, stream);
        if (error == cudaErrorMemoryAllocation) {
            cudaGetLastError();
            fail(Fault::internal, "memory", "{} has no {:.2f} GiB left for a kernel's scratch memory.\n{}",
                 to_string(device), static_cast<double>(bytes) / (1 << 30), table);
        }
    }
    LEVIN_CUDA_CHECK(error);
}

Scratch::~Scratch() {
    if (!data_) return;
    ScratchSource* source = scratch_source();
    if (!source || !source->give(data_)) cudaFreeAsync(data_, stream_);
}

void* allocate(const Device& device, size_t bytes) {
    state_of(device.index);
    LEVIN_CUDA_CHECK(cudaSetDevice(device.index));
    void* pointer = nullptr;
    const cudaError_t error = cudaMalloc(&pointer, bytes == 0 ? 256 : bytes);
    if (error == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        size_t free_bytes = 0, total_bytes = 0;
        cudaMemGetInfo(&free_bytes, &total_bytes);
        fail(Fault::internal, "memory",
             "{} has no {:.2f} GiB left ({:.2f} of {:.2f} GiB free); use a smaller trainer.micro_batch or "
             "trainer.sequence_length",
             to_string(device), static_cast<double>(bytes) / (1 << 30),
             static_cast<double>(free_bytes) / (1 << 30), static_cast<double>(total_bytes) / (1 << 30));
    }
    LEVIN_CUDA_CHECK(error);
    return pointer;
}

void release(const Device& device, void* pointer) noexcept {
    if (!pointer) return;
    cudaSetDevice(device.index);
    cudaFree(pointer);
}

void copy_bytes(const Stream& stream, const Device& to_device, void* to, const Device& from_device,
                const void* from, size_t bytes) {
    if (bytes == 0) return;
    const Stream queue =
        stream.device.is_cuda() ? stream : default_stream(to_device.is_cuda() ? to_device : from_device);
    const cudaStream_t handle = use(queue);
    if (to_device.is_cuda() && from_device.is_cuda() && to_device.index != from_device.index) {
        LEVIN_CUDA_CHECK(cudaMemcpyPeerAsync(to, to_device.index, from, from_device.index, bytes, handle));
        return;
    }
    LEVIN_CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, handle));
    if (to_device.is_cpu() || from_device.is_cpu()) LEVIN_CUDA_CHECK(cudaStreamSynchronize(handle));
}

Stream default_stream(const Device& device) { return Stream{device, state_of(device.index).stream}; }

void synchronize(const Stream& stream) { LEVIN_CUDA_CHECK(cudaStreamSynchronize(use(stream))); }

void push_range(const char* name) { nvtxRangePushA(name); }
void pop_range() { nvtxRangePop(); }

bool built_with_cuda() { return true; }

int device_count(std::string* why_none) {
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error == cudaSuccess && count > 0) return count;
    cudaGetLastError();
    if (why_none)
        *why_none =
            error == cudaErrorInsufficientDriver || error == cudaErrorStubLibrary
                ? "no NVIDIA driver is installed, or it is older than the CUDA this levin was built with"
            : error == cudaErrorNoDevice || error == cudaSuccess
                ? "this machine has no NVIDIA GPU that a driver can see"
                : fmt::format("the CUDA driver says: {}", cudaGetErrorString(error));
    return 0;
}

DeviceInfo device_info(int index) {
    state_of(index);
    cudaDeviceProp properties;
    LEVIN_CUDA_CHECK(cudaGetDeviceProperties(&properties, index));
    DeviceInfo info;
    info.name = properties.name;
    info.compute_capability = fmt::format("{}.{}", properties.major, properties.minor);
    info.multiprocessors = properties.multiProcessorCount;
    LEVIN_CUDA_CHECK(cudaSetDevice(index));
    LEVIN_CUDA_CHECK(cudaMemGetInfo(&info.free_bytes, &info.total_bytes));
    return info;
}

}  // namespace levin::kernels::cuda
