// Stands in for cuda/ in a build without a CUDA toolkit: everything links, and says so when a GPU is asked
// for.
#include "kernels/backends.h"
#include "kernels/base/error.h"
#include "kernels/device_memory.h"
#include "kernels/stream_event.h"
#include "kernels/stream_graph.h"

namespace levin::kernels::cuda {

namespace {
[[noreturn]] void absent() {
    fail(Fault::input, "device",
         "this levin was built without CUDA; use trainer.device=cpu, or install the CUDA toolkit and run "
         "launch/build again");
}
}  // namespace

#define LEVIN_KERNEL(name, Args) \
    void name(const Stream&, const Args&) { absent(); }
#include "kernels/kernels.def"
#undef LEVIN_KERNEL

int64_t lightning_states_to_keep(const Stream&, const LightningForward&) { absent(); }
GemmTuning gemm_tuning(const Stream&, const Gemm&) { absent(); }
void* allocate(const Device&, size_t) { absent(); }
void release(const Device&, void*) noexcept {}
void copy_bytes(const Stream&, const Device&, void*, const Device&, const void*, size_t) { absent(); }
Stream default_stream(const Device&) { absent(); }
void synchronize(const Stream&) { absent(); }
void push_range(const char*) {}
void pop_range() {}
void* record_graph(const Stream&, const std::function<void()>&) { absent(); }
void launch_graph(const Stream&, void*) { absent(); }
void destroy_graph(void*) noexcept {}
void* create_event(const Device&) { absent(); }
void destroy_event(void*) noexcept {}
void record_event(const Stream&, void*) { absent(); }
bool event_done(void*) { absent(); }
void wait_event(void*) { absent(); }
double event_ms_since(void*, void*) { absent(); }
void* allocate_pinned(const Device&, size_t) { absent(); }
void release_pinned(void*) noexcept {}
void copy_bytes_async(const Stream&, void*, const void*, size_t) { absent(); }
bool built_with_cuda() { return false; }
int device_count(std::string* why_none) {
    if (why_none) *why_none = "this levin was built without CUDA";
    return 0;
}
DeviceInfo device_info(int) { absent(); }

}  // namespace levin::kernels::cuda
