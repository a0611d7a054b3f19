#include "parallel/nccl/nccl_communicator.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <exception>
#include <functional>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "kernels/cuda/check.h"
#include "kernels/device_memory.h"
#include "parallel/agreement.h"
#include "parallel/communication_meter.h"
#include "parallel/copy_engine/exchange.h"
#include "parallel/gpu_event.h"
#include "parallel/mpi/check.h"
#include "parallel/nccl/library.h"
#include "parallel/routed.h"
#include "parallel/watchdog/activity.h"

namespace levin::nccl {

namespace {

ncclDataType_t type_of(DType dtype) {
    switch (dtype) {
        case DType::f64:
            return ncclFloat64;
        case DType::f32:
            return ncclFloat32;
        case DType::bf16:
            return ncclBfloat16;
        case DType::i64:
            return ncclInt64;
        case DType::i32:
            return ncclInt32;
        default:
            return ncclUint8;
    }
}

// Types that NCCL does not know travel as bytes; they are never reduced.
size_t count_of(const Tensor& tensor) {
    return type_of(tensor.dtype()) == ncclUint8 ? tensor.bytes() : static_cast<size_t>(tensor.count());
}

ncclRedOp_t op_of(ReduceOp op) { return op == ReduceOp::sum ? ncclSum : ncclMax; }

// The NCCL communicator itself, shared by the works it started.
struct Link {
    ncclComm_t comm = nullptr;
    cudaStream_t stream = nullptr;
    int device = 0;
    std::string name;   // "world.dp"
    std::string group;  // and the ranks in it: "world.dp [0,2]"
    std::mutex mutex;   // stop() comes from another thread
    bool stopped = false;

    void stop() noexcept {
        {
            const std::lock_guard lock(mutex);
            if (stopped) return;
            stopped = true;
        }
        library().ncclCommAbort(comm);
    }

    void check() {
        const std::lock_guard lock(mutex);
        if (stopped) fail(Fault::communication, "nccl", "{}: used after the job was stopped", name);
        ncclResult_t state = ncclSuccess;
        LEVIN_NCCL(ncclCommGetAsyncError, comm, &state);
        if (state != ncclSuccess && state != ncclInProgress)
            fail(Fault::communication, "nccl",
                 "{}: {}; a peer or the network between the GPUs has failed, look for the first rank that "
                 "reported an error",
                 name, error_text(state));
    }
};

class NcclWork : public Work {
public:
    // `settle` queues what is left of the operation on the stream that needs its result; empty: nothing is.
    // Such a work ends by wait() alone: when ranks settle decides how they carry the next one, so all do it
    // alike.
    NcclWork(std::shared_ptr<Link> link, std::shared_ptr<GpuEvent> done, std::vector<Tensor> tensors,
             std::function<void(cudaStream_t)> settle = {})
        : link_(std::move(link)),
          done_(std::move(done)),
          tensors_(std::move(tensors)),
          settle_(std::move(settle)) {}

    // The memory goes back to the tensor's stream: that stream must not use it before the end.
    ~NcclWork() override {
        if (tensors_.empty() || !(done_->recorded() || settle_)) return;
        try {
            hold_back(tensors_[0].stream());
        } catch (const Error&) {  // the next call fails too, and may throw
        }
    }

    bool test() override {
        link_->check();
        return done_->recorded() && done_->ended();
    }

    void wait() override {
        if (tensors_.empty()) return;
        LEVIN_CHECK(done_->recorded() || settle_, link_->name,
                    "wait() inside the group that the operation belongs to");
        link_->check();
        hold_back(tensors_[0].stream());
        tensors_.clear();
    }

private:
    void hold_back(const Stream& stream) {
        const cudaStream_t handle = kernels::cuda::use(stream);
        CommunicationMeter* meter = CommunicationMeter::current();
        if (meter && done_->timed()) {
            const auto reached = std::make_shared<GpuEvent>(link_->device, true);
            reached->record(handle);
            meter->add_later(link_->name, [reached, done = done_]() -> std::optional<CommunicationTime> {
                const std::optional<double> ms = ms_between(*reached, *done);
                if (!ms) return std::nullopt;
                return CommunicationTime{.busy_ms = 0, .exposed_ms = *ms};
            });
        }
        if (settle_) {
            std::exchange(settle_, {})(handle);
            done_->record(handle);
        } else {
            LEVIN_CUDA_CHECK(cudaStreamWaitEvent(handle, done_->get()));
        }
    }

    std::shared_ptr<Link> link_;
    std::shared_ptr<GpuEvent> done_;
    std::vector<Tensor> tensors_;
    std::function<void(cudaStream_t)> settle_;
};

class NcclCommunicator : public GpuCommunicator {
public:
    NcclCommunicator(ncclComm_t comm, int device, Communicator& ranks, const GroupOptions& options)
        : GpuCommunicator(ranks.rank(), ranks.size(), ranks.name()),
          link_(std::make_shared<Link>()),
          errors_at_creation_(std::uncaught_exceptions()) {
        link_->comm = comm;
        link_->device = device;
        link_->name = ranks.name();
        for (const std::string& member : gather_texts(ranks, std::to_string(mpi::world_rank())))
            link_->group += (link_->group.empty() ? ranks.name() + " [" : ",") + member;
        link_->group += "]";
        at_emergency([link = std::weak_ptr(link_)] {
            if (const auto living = link.lock()) living->stop();
        });
        LEVIN_CUDA_CHECK(cudaSetDevice(device));
        int least = 0, greatest = 0;
        LEVIN_CUDA_CHECK(cudaDeviceGetStreamPriorityRange(&least, &greatest));
        // A collective that becomes ready goes before kernels that are waiting: peers depend on it.
        LEVIN_CUDA_CHECK(cudaStreamCreateWithPriority(&link_->stream, cudaStreamNonBlocking, greatest));
        LEVIN_CUDA_CHECK(cudaEventCreateWithFlags(&ready_, cudaEventDisableTiming));
        exchange_ = copy_engine::Exchange::make(ranks, device, options.copy_engines);
    }

    ~NcclCommunicator() override {
        // Ending may wait for the other ranks: not on the way out of a failure, which they do not share.
        if (link_->stopped || std::uncaught_exceptions() > errors_at_creation_) {
            if (exchange_) exchange_->abandon();
            return;
        }
        cudaSetDevice(link_->device);
        cudaStreamSynchronize(link_->stream);
        exchange_.reset();
        library().ncclCommDestroy(link_->comm);
        cudaEventDestroy(ready_);
        cudaStreamDestroy(link_->stream);
    }

    bool copy_engines() const override { return exchange_ != nullptr; }
    std::shared_ptr<void> expose(const std::vector<Tensor>& parts) override {
        return exchange_ ? exchange_->expose(parts) : nullptr;
    }

    void open_group() override {
        LEVIN_NCCL(ncclGroupStart);
        group_ = new_end();
        group_began_ = group_swapped_ = false;
    }
    void close_group() override {
        const std::shared_ptr<GpuEvent> done = std::move(group_);
        group_.reset();
        LEVIN_CUDA_CHECK(cudaSetDevice(link_->device));
        LEVIN_NCCL(ncclGroupEnd);
        join_copy_engines();
        done->record(link_->stream);
    }

    std::shared_ptr<GpuCommunicator> split_gpus(int color, int key, Communicator* part,
                                                const GroupOptions& options) override {
        link_->check();
        ncclComm_t comm = nullptr;
        LEVIN_CUDA_CHECK(cudaSetDevice(link_->device));
        LEVIN_NCCL(ncclCommSplit, link_->comm, part ? color : NCCL_SPLIT_NOCOLOR, key, &comm, nullptr);
        if (!part) return nullptr;
        return std::make_shared<NcclCommunicator>(comm, link_->device, *part, options);
    }

    double seconds_alone(int call, const Tensor& whole, const Tensor& part, int64_t calls) override {
        const ncclDataType_t type = type_of(whole.dtype());
        kernels::synchronize(whole.stream());
        const auto start = std::chrono::steady_clock::now();
        for (int64_t i = 0; i < calls; ++i) switch (static_cast<NcclCall>(call)) {
                case NcclCall::none:
                    break;
                case NcclCall::all_reduce:
                    LEVIN_NCCL(ncclAllReduce, whole.data(), whole.data(), count_of(whole), type, ncclSum,
                               link_->comm, link_->stream);
                    break;
                case NcclCall::all_gather:
                    LEVIN_NCCL(ncclAllGather, part.data(), whole.data(), count_of(part), type, link_->comm,
                               link_->stream);
                    break;
                case NcclCall::reduce_scatter:
                    LEVIN_NCCL(ncclReduceScatter, whole.data(), part.data(), count_of(part), type, ncclSum,
                               link_->comm, link_->stream);
                    break;
            }
        LEVIN_CUDA_CHECK(cudaStreamSynchronize(link_->stream));
        return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() /
               static_cast<double>(calls);
    }

    void stop() noexcept override { link_->stop(); }

    [[noreturn]] void abort(int status) noexcept override {
        stop();
        std::_Exit(status);
    }

protected:
    std::shared_ptr<Communicator> do_split(int, int, const std::string& part, const GroupOptions&) override {
        fail(Fault::internal, name(), "split into {}: the host's communicator goes first", part);
    }
    Pending do_all_reduce(const Tensor& tensor, ReduceOp op) override {
        if (may_swap(tensor, op) && exchange_->can_swap(tensor.bytes())) return swap(tensor);
        return launch(op == ReduceOp::sum ? "all_reduce" : "all_reduce (max)", {tensor}, [&] {
            if (sums_by_copy_engines(tensor, op)) return exchange_->all_reduce(tensor, ready_);
            LEVIN_NCCL(ncclAllReduce, tensor.data(), tensor.data(), count_of(tensor), type_of(tensor.dtype()),
                       op_of(op), link_->comm, link_->stream);
        });
    }
    Pending do_all_gather(const Tensor& part, const Tensor& whole) override {
        return launch("all_gather", {whole, part}, [&] {
            if (exchange_ && exchange_->gathers(whole.bytes()))
                return exchange_->all_gather(part, whole, ready_);
            LEVIN_NCCL(ncclAllGather, part.data(), whole.data(), count_of(part), type_of(part.dtype()),
                       link_->comm, link_->stream);
        });
    }
    Pending do_reduce_scatter(const Tensor& whole, const Tensor& part, ReduceOp op) override {
        return launch(op == ReduceOp::sum ? "reduce_scatter" : "reduce_scatter (max)", {whole, part}, [&] {
            if (sums_by_copy_engines(whole, op)) return exchange_->reduce_scatter(whole, part, ready_);
            LEVIN_NCCL(ncclReduceScatter, whole.data(), part.data(), count_of(part), type_of(part.dtype()),
                       op_of(op), link_->comm, link_->stream);
        });
    }
    Pending do_broadcast(const Tensor& tensor, int root) override {
        return launch(fmt::format("broadcast from rank {}", root), {tensor}, [&] {
            LEVIN_NCCL(ncclBroadcast, tensor.data(), tensor.data(), count_of(tensor), type_of(tensor.dtype()),
                       root, link_->comm, link_->stream);
        });
    }
    Pending do_send(const Tensor& tensor, int to) override {
        return launch(fmt::format("message to rank {}", to), {tensor}, [&] {
            LEVIN_NCCL(ncclSend, tensor.data(), count_of(tensor), type_of(tensor.dtype()), to, link_->comm,
                       link_->stream);
        });
    }
    Pending do_recv(const Tensor& tensor, int from) override {
        return launch(fmt::format("message from rank {}", from), {tensor}, [&] {
            LEVIN_NCCL(ncclRecv, tensor.data(), count_of(tensor), type_of(tensor.dtype()), from, link_->comm,
                       link_->stream);
        });
    }
    Pending do_barrier() override {
        fail(Fault::internal, name(), "a barrier is no affair of the GPU: the host's communicator makes it");
    }

private:
    // All ranks decide alike: by size, type and operation.
    bool sums_by_copy_engines(const Tensor& tensor, ReduceOp op) const {
        return exchange_ && op == ReduceOp::sum && exchange_->sums(tensor.bytes(), tensor.dtype());
    }

    // Of whatever size in a group that has swapped: a kernel of NCCL would hold a multiprocessor until the
    // peer comes, beside products that nobody else waits for.
    bool may_swap(const Tensor& tensor, ReduceOp op) const {
        const bool follows = group_ && group_swapped_ && op == ReduceOp::sum && is_floating(tensor.dtype());
        return follows || sums_by_copy_engines(tensor, op);
    }

    // An all_reduce of two ranks whose sum is formed when it is waited for.
    Pending swap(const Tensor& tensor) {
        group_swapped_ = true;
        const std::shared_ptr<GpuEvent> done = new_end();
        announce("all_reduce", {tensor}, done);
        const cudaStream_t stream = exchange_->swap_stream();
        LEVIN_CUDA_CHECK(cudaStreamWaitEvent(stream, ready_));
        const std::shared_ptr<GpuEvent> sent = new_end();
        note_start(sent, stream);
        const uint64_t number = exchange_->swap(tensor, sent);
        return std::make_shared<NcclWork>(
            link_, done, std::vector<Tensor>{tensor},
            [exchange = exchange_, number](cudaStream_t user) { exchange->settle(number, user); });
    }

    // Checks a call, tells the watchdog, and lets what follows begin when the tensors are ready.
    void announce(const std::string& call, const std::vector<Tensor>& tensors,
                  const std::shared_ptr<GpuEvent>& done) {
        for (const Tensor& tensor : tensors)
            LEVIN_CHECK(tensor.device() == (Device{DeviceType::cuda, link_->device}), name(),
                        "this rank communicates from cuda:{}, the tensor is on {}", link_->device,
                        to_string(tensor.device()));
        link_->check();
        // Asking for the address makes the tensor's stream wait for what is still under way for it (a
        // reduction that is awaited at the first use), and the event must come behind that.
        for (const Tensor& tensor : tensors) tensor.data();
        LEVIN_CUDA_CHECK(cudaEventRecord(ready_, kernels::cuda::use(tensors[0].stream())));
        LEVIN_CUDA_CHECK(cudaStreamWaitEvent(link_->stream, ready_));
        const bool message = call.starts_with("message");
        begin_operation(message ? link_->group + " messages" : link_->group, message ? -1 : calls_++,
                        fmt::format("{} of {} {}", call, tensors[0].count(), to_string(tensors[0].dtype())),
                        [done] { return done->recorded() && done->ended(); });
    }

    template <class Body>
    Pending launch(const std::string& call, std::vector<Tensor> tensors, const Body& body) {
        const std::shared_ptr<GpuEvent> done = group_ ? group_ : new_end();
        announce(call, tensors, done);
        if (!group_ || !group_began_) note_start(done, link_->stream);
        group_began_ = true;
        body();
        if (!group_) {
            join_copy_engines();
            done->record(link_->stream);
        }
        return std::make_shared<NcclWork>(link_, done, std::move(tensors));
    }

    // Last in a group, so that what NCCL carries need not wait for it.
    void join_copy_engines() {
        if (exchange_) exchange_->join(link_->stream);
    }

    std::shared_ptr<GpuEvent> new_end() const {
        return std::make_shared<GpuEvent>(link_->device, CommunicationMeter::current() != nullptr);
    }

    // What `done` will end comes next on the stream.
    void note_start(const std::shared_ptr<GpuEvent>& done, cudaStream_t stream) {
        CommunicationMeter* meter = CommunicationMeter::current();
        if (!meter || !done->timed()) return;
        const auto start = std::make_shared<GpuEvent>(link_->device, true);
        start->record(stream);
        meter->add_later(link_->name, [start, done]() -> std::optional<CommunicationTime> {
            const std::optional<double> ms = ms_between(*start, *done);
            if (!ms) return std::nullopt;
            return CommunicationTime{.busy_ms = *ms, .exposed_ms = 0};
        });
    }

    std::shared_ptr<Link> link_;
    std::shared_ptr<copy_engine::Exchange> exchange_;  // null: NCCL carries everything
    cudaEvent_t ready_ = nullptr;
    std::shared_ptr<GpuEvent> group_;  // end of the open group
    bool group_began_ = false, group_swapped_ = false;
    int64_t calls_ = 0;
    int errors_at_creation_;
};

}  // namespace

bool built() { return true; }

std::string version() {
    int number = 0;
    LEVIN_NCCL(ncclGetVersion, &number);
    return fmt::format("NCCL {}.{}.{}", number / 10000, number / 100 % 100, number % 100);
}

std::string gpu_identity(int index) {
    char text[64] = {};
    LEVIN_CUDA_CHECK(cudaDeviceGetPCIBusId(text, sizeof(text), index));
    return text;
}

std::shared_ptr<GpuCommunicator> make_communicator(Communicator& ranks, const Device& device) {
    ncclUniqueId id;
    static_assert(sizeof(id.internal) == NCCL_UNIQUE_ID_BYTES);
    if (ranks.rank() == 0) LEVIN_NCCL(ncclGetUniqueId, &id);
    const Tensor bytes = Tensor::empty({NCCL_UNIQUE_ID_BYTES}, DType::u8);
    if (ranks.rank() == 0) std::memcpy(bytes.data(), id.internal, sizeof(id.internal));
    ranks.broadcast(bytes, 0);
    std::memcpy(id.internal, bytes.data(), sizeof(id.internal));
    kernels::default_stream(device);  // the device exists, with its context
    LEVIN_CUDA_CHECK(cudaSetDevice(device.index));
    ncclComm_t comm = nullptr;
    LEVIN_NCCL(ncclCommInitRank, &comm, ranks.size(), id, ranks.rank());
    return std::make_shared<NcclCommunicator>(comm, device.index, ranks, GroupOptions{});
}

}  // namespace levin::nccl
