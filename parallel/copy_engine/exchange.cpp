#include "parallel/copy_engine/exchange.h"

#include <cuda.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <fstream>
#include <span>

#include "kernels/cuda/check.h"
#include "kernels/cuda/driver.h"
#include "kernels/cuda/rank_sum.h"
#include "kernels/device_memory.h"
#include "parallel/agreement.h"
#include "parallel/host.h"

namespace levin::copy_engine {

namespace {

using kernels::cuda::driver_function;

void check_driver(CUresult result, const char* call) {
    LEVIN_CHECK(result == CUDA_SUCCESS, "copy engine", "{} failed: driver error {}", call,
                static_cast<int>(result));
}

void wait_for(cudaStream_t stream, const char* flag, uint32_t value) {
    static const auto call =
        reinterpret_cast<decltype(&cuStreamWaitValue32)>(driver_function("cuStreamWaitValue32"));
    check_driver(call(stream, reinterpret_cast<CUdeviceptr>(flag), value, CU_STREAM_WAIT_VALUE_GEQ),
                 "cuStreamWaitValue32");
}

// Everything before it in the stream is visible to whoever sees the value.
void set_flag(cudaStream_t stream, const char* flag, uint32_t value) {
    static const auto call =
        reinterpret_cast<decltype(&cuStreamWriteValue32)>(driver_function("cuStreamWriteValue32"));
    check_driver(call(stream, reinterpret_cast<CUdeviceptr>(flag), value, CU_STREAM_WRITE_VALUE_DEFAULT),
                 "cuStreamWriteValue32");
}

void copy(cudaStream_t stream, char* to, const char* from, size_t bytes) {
    LEVIN_CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream));
}

// One running kernel: host names of containers may be alike.
std::string host_identity() {
    std::string boot;
    std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
    return host_name() + " " + boot;
}

char* bytes_of(const Tensor& tensor) { return static_cast<char*>(tensor.data()); }

// Gradients and parameters come in hundreds of MiB, and their sums wait for a gap between kernels: much room
// to go on meanwhile. What is awaited comes in tens of MiB.
Window window_for(int ranks, CopyEngines use) {
    const auto mib = [&](size_t whole) {
        return (whole << 20) / static_cast<size_t>(ranks - 1) / 4096 * 4096 - 8192;
    };
    if (use == CopyEngines::gathers) return {.ranks = ranks, .ring = {0, mib(32), 0}};
    if (use == CopyEngines::overlapped) return {.ranks = ranks, .ring = {mib(256), mib(64), 0}};
    return {.ranks = ranks, .ring = {mib(64), mib(64), mib(192)}};
}

// Tensors of all ranks, the peers' mapped into this process.
struct Mapped {
    std::vector<std::vector<char*>> places;  // by tensor, by rank; null: the own one
    std::vector<void*> blocks;               // opened here
    bool good = true;                        // on every rank

    void close() {
        for (void* block : blocks) cudaIpcCloseMemHandle(block);
        blocks.clear();
    }
};

// Collective, with as many tensors everywhere.
Mapped map_peers(Communicator& ranks, const std::vector<Tensor>& tensors) {
    struct Place {
        cudaIpcMemHandle_t block;
        size_t offset;
    };
    const size_t count = tensors.size();
    const auto bytes = static_cast<int64_t>(count * sizeof(Place));
    const Tensor mine = Tensor::empty({bytes}, DType::u8),
                 all = Tensor::empty({ranks.size(), bytes}, DType::u8);
    Mapped mapped{std::vector<std::vector<char*>>(count), {}, true};
    for (size_t i = 0; i < count && mapped.good; ++i) {
        char* block = static_cast<char*>(tensors[i].storage().data());
        Place place{{}, static_cast<size_t>(bytes_of(tensors[i]) - block)};
        mapped.good = cudaIpcGetMemHandle(&place.block, block) == cudaSuccess;
        std::memcpy(bytes_of(mine) + i * sizeof(Place), &place, sizeof(place));
    }
    ranks.all_gather(mine, all);
    for (size_t i = 0; i < count; ++i) {
        mapped.places[i].resize(static_cast<size_t>(ranks.size()), nullptr);
        for (int peer = 0; peer < ranks.size() && mapped.good; ++peer) {
            if (peer == ranks.rank()) continue;
            Place place;
            std::memcpy(&place, bytes_of(all) + peer * bytes + i * sizeof(Place), sizeof(place));
            void* block = nullptr;
            mapped.good =
                cudaIpcOpenMemHandle(&block, place.block, cudaIpcMemLazyEnablePeerAccess) == cudaSuccess;
            if (!mapped.good) break;
            mapped.blocks.push_back(block);
            mapped.places[i][static_cast<size_t>(peer)] = static_cast<char*>(block) + place.offset;
        }
    }
    if (!mapped.good) cudaGetLastError();  // an answer, not an error
    mapped.good = all_agree(ranks, mapped.good);
    return mapped;
}

}  // namespace

std::shared_ptr<Exchange> Exchange::make(Communicator& ranks, int device, CopyEngines use) {
    const std::vector<std::string> hosts = gather_texts(ranks, host_identity());
    const bool one_host =
        std::all_of(hosts.begin(), hosts.end(), [&](const std::string& host) { return host == hosts[0]; });
    if (use == CopyEngines::none || !one_host || ranks.size() < 2 ||
        ranks.size() > (use == CopyEngines::awaited ? 2 : kernels::cuda::kMaxSummedRanks))
        return nullptr;
    std::shared_ptr<Exchange> exchange(new Exchange(ranks, device, window_for(ranks.size(), use)));
    if (exchange->connect()) return exchange;
    return nullptr;
}

Exchange::Exchange(Communicator& ranks, int device, const Window& window)
    : ranks_(ranks),
      device_(device),
      window_(window),
      schedule_(window, ranks.rank()),
      peers_(static_cast<size_t>(ranks.size()), nullptr) {
    LEVIN_CUDA_CHECK(cudaSetDevice(device));
    int least = 0, greatest = 0;
    LEVIN_CUDA_CHECK(cudaDeviceGetStreamPriorityRange(&least, &greatest));
    for (int queue = 0; queue < static_cast<int>(Queue::user); ++queue)
        LEVIN_CUDA_CHECK(cudaStreamCreateWithPriority(&streams_[queue], cudaStreamNonBlocking, greatest));
    LEVIN_CUDA_CHECK(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming));
}

// Opens everybody's window; the same answer on every rank.
bool Exchange::connect() {
    const MemoryScope scope(MemoryCategory::workspace);
    memory_ =
        Tensor::empty({static_cast<int64_t>(window_.bytes())}, DType::u8, Device{DeviceType::cuda, device_});
    kernels::synchronize(memory_.stream());  // what used this memory before has ended
    const size_t flags = window_.place(Kind::reduce, 0, 1);
    LEVIN_CUDA_CHECK(cudaMemsetAsync(memory_.data(), 0, flags, stream(Queue::sums)));
    LEVIN_CUDA_CHECK(cudaStreamSynchronize(stream(Queue::sums)));
    Mapped windows = map_peers(ranks_, {memory_});
    peers_ = windows.places[0];
    opened_ = std::move(windows.blocks);
    return windows.good;
}

// The peers' parts, mapped here, and memory that keeps this rank's own ones.
class Exchange::Exposure {
public:
    Exposure(Exchange& exchange, const std::vector<Tensor>& parts) : exchange_(exchange), parts_(parts) {}
    ~Exposure() {
        for (const Tensor& part : parts_) exchange_.exposed_.erase({part.data(), part.bytes()});
        if (exchange_.abandoned_ || std::uncaught_exceptions() > 0) return;
        cudaSetDevice(exchange_.device_);
        cudaStreamSynchronize(exchange_.stream(Queue::copies));
        mapped_.close();
        try {
            exchange_.ranks_.barrier();  // nobody's memory goes while a peer has it open
        } catch (const Error&) {         // the next call fails too, and may throw
        }
    }
    Exposure(const Exposure&) = delete;

    // The same answer on every rank.
    bool open() {
        mapped_ = map_peers(exchange_.ranks_, parts_);
        for (size_t i = 0; i < parts_.size() && mapped_.good; ++i)
            exchange_.exposed_[{parts_[i].data(), parts_[i].bytes()}] = mapped_.places[i];
        return mapped_.good;
    }

private:
    Exchange& exchange_;
    std::vector<Tensor> parts_;
    Mapped mapped_;
};

std::shared_ptr<void> Exchange::expose(const std::vector<Tensor>& parts) {
    LEVIN_CUDA_CHECK(cudaSetDevice(device_));
    // Allocations of less share a page, which a process cannot open twice.
    constexpr size_t kPage = size_t{2} << 20;
    std::vector<Tensor> large;
    for (const Tensor& part : parts)
        if (part.storage().bytes() >= kPage) large.push_back(part);
    if (large.empty()) return nullptr;
    const auto exposure = std::make_shared<Exposure>(*this, large);
    return exposure->open() ? exposure : nullptr;
}

const std::vector<char*>* Exchange::exposed(const Tensor& part) const {
    const auto found = exposed_.find({part.data(), part.bytes()});
    return found == exposed_.end() ? nullptr : &found->second;
}

Exchange::~Exchange() {
    if (abandoned_ || std::uncaught_exceptions() > 0) return;
    cudaSetDevice(device_);
    for (cudaStream_t one : streams_)
        if (one) cudaStreamSynchronize(one);
    stream(Queue::user) = nullptr;  // the others are ours
    for (void* window : opened_) cudaIpcCloseMemHandle(window);
    try {
        ranks_.barrier();  // nobody's window goes while a peer has it open
    } catch (const Error&) {
        return;
    }
    for (cudaStream_t one : streams_)
        if (one) cudaStreamDestroy(one);
    cudaEventDestroy(event_);
}

void Exchange::begin(cudaEvent_t ready, std::initializer_list<Queue> queues) {
    LEVIN_CUDA_CHECK(cudaSetDevice(device_));
    for (Queue queue : queues) {
        LEVIN_CUDA_CHECK(cudaStreamWaitEvent(stream(queue), ready));
        open_[static_cast<size_t>(queue)] = true;
    }
}

void Exchange::join(cudaStream_t joined) {
    for (size_t queue = 0; queue < kQueues; ++queue) {
        if (!open_[queue]) continue;
        LEVIN_CUDA_CHECK(cudaEventRecord(event_, streams_[queue]));
        LEVIN_CUDA_CHECK(cudaStreamWaitEvent(joined, event_));
        open_[queue] = false;
    }
}

void Exchange::run(const Steps& steps, const Tensor& source, const Tensor& target,
                   std::optional<Step::Action> only, const std::vector<char*>* exposed) {
    const char* from = bytes_of(source);
    char* to = bytes_of(target);
    char* window = bytes_of(memory_);
    for (const Step& step : steps) {
        if (only && step.action != *only) continue;
        const cudaStream_t queue = stream(step.queue);
        char* peer = step.peer < 0 ? nullptr : peers_[static_cast<size_t>(step.peer)];
        switch (step.action) {
            case Step::Action::put:
                copy(queue, peer + step.to, from + step.from, step.bytes);
                break;
            case Step::Action::copy:
                copy(queue, to + step.to, window + step.from, step.bytes);
                break;
            case Step::Action::pull:
                copy(queue, to + step.to, (*exposed)[static_cast<size_t>(step.peer)] + step.from, step.bytes);
                break;
            case Step::Action::wait:
                wait_for(queue, window + window_.flag(step.kind, step.consumed, step.peer), step.value);
                break;
            case Step::Action::signal:
                set_flag(queue, peer + window_.flag(step.kind, step.consumed, ranks_.rank()), step.value);
                break;
            case Step::Action::follow:
                LEVIN_CUDA_CHECK(cudaEventRecord(event_, stream(step.after)));
                LEVIN_CUDA_CHECK(cudaStreamWaitEvent(queue, event_));
                break;
            case Step::Action::sum: {
                const void* parts[kernels::cuda::kMaxSummedRanks];
                for (int p = 0; p < ranks_.size(); ++p)
                    parts[p] = p == ranks_.rank()
                                   ? from + step.from
                                   : window + window_.place(step.kind, ranks_.rank(), p) + step.ring;
                kernels::cuda::sum_in_rank_order(queue, parts, ranks_.size(), to + step.to,
                                                 static_cast<int64_t>(step.bytes / size_of(target.dtype())),
                                                 target.dtype());
                break;
            }
        }
    }
}

void Exchange::all_reduce(const Tensor& tensor, cudaEvent_t ready) {
    begin(ready, {Queue::reduce_out, Queue::gather_out, Queue::sums, Queue::copies});
    const auto* exposed = this->exposed(tensor);
    run(schedule_.all_reduce(tensor.bytes(), size_of(tensor.dtype()), exposed), tensor, tensor, {}, exposed);
}

void Exchange::reduce_scatter(const Tensor& whole, const Tensor& part, cudaEvent_t ready) {
    begin(ready, {Queue::reduce_out, Queue::sums});
    run(schedule_.reduce_scatter(part.bytes()), whole, part);
}

void Exchange::all_gather(const Tensor& part, const Tensor& whole, cudaEvent_t ready) {
    begin(ready, {Queue::gather_out, Queue::copies});
    const auto* exposed = this->exposed(part);
    run(schedule_.all_gather(part.bytes(), exposed), part, whole, {}, exposed);
    char* own = bytes_of(whole) + static_cast<size_t>(ranks_.rank()) * part.bytes();
    if (own != bytes_of(part)) copy(stream(Queue::gather_out), own, bytes_of(part), part.bytes());
}

uint64_t Exchange::swap(const Tensor& tensor, const std::shared_ptr<GpuEvent>& sent) {
    LEVIN_CUDA_CHECK(cudaSetDevice(device_));
    Schedule::Swap halves = schedule_.swap(tensor.bytes());
    run(halves.out, tensor, tensor);
    sent->record(stream(Queue::swap_out));
    swaps_.push_back({std::move(halves.in), tensor, sent});
    return settled_ + swaps_.size();
}

void Exchange::settle(uint64_t swap, cudaStream_t user) {
    if (swap <= settled_) return;
    LEVIN_CUDA_CHECK(cudaSetDevice(device_));
    stream(Queue::user) = user;
    // Those before it come with it, as their order is that of the ring; those behind it may travel on. Flags
    // count: the last one that arrives covers those before it, and so does the last one that is set.
    const auto end = swaps_.begin() + static_cast<ptrdiff_t>(swap - settled_);
    const std::span<const Half> due(swaps_.begin(), end);
    // A sum takes the place of what is sent; the last was sent last.
    LEVIN_CUDA_CHECK(cudaStreamWaitEvent(user, due.back().sent->get()));
    run(due.back().steps, due.back().tensor, due.back().tensor, Step::Action::wait);
    for (const Half& half : due) run(half.steps, half.tensor, half.tensor, Step::Action::sum);
    run(due.back().steps, due.back().tensor, due.back().tensor, Step::Action::signal);
    for (const Half& half : due) schedule_.settled(half.tensor.bytes());
    settled_ = swap;
    swaps_.erase(swaps_.begin(), end);
}

}  // namespace levin::copy_engine
