#include "parallel/mpi/mpi_communicator.h"

#include <exception>
#include <thread>

#include "parallel/communication_meter.h"
#include "parallel/mpi/collectives.h"
#include "parallel/mpi/hosts.h"
#include "parallel/mpi/runtime.h"
#include "parallel/self.h"

namespace levin::mpi {

namespace {

// Two tags per call, reused after 16384 calls: MPI guarantees tags up to 32767, and never are so many in
// flight.
constexpr int64_t kCalls = 16384;

int rank_of(MPI_Comm comm) {
    int rank = 0;
    LEVIN_MPI(MPI_Comm_rank(comm, &rank));
    return rank;
}
int size_of_group(MPI_Comm comm) {
    int size = 0;
    LEVIN_MPI(MPI_Comm_size(comm, &size));
    return size;
}

class MpiCommunicator : public Communicator {
public:
    // Owns `comm`.
    MpiCommunicator(MPI_Comm comm, const std::string& name, std::thread::id thread,
                    std::shared_ptr<const Hosts> hosts = {})
        : Communicator(rank_of(comm), size_of_group(comm), name),
          comm_(comm),
          hosts_(std::move(hosts)),
          errors_at_creation_(std::uncaught_exceptions()),
          thread_(thread) {
        LEVIN_MPI(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN));
        LEVIN_MPI(MPI_Comm_dup(comm_, &messages_));
        LEVIN_MPI(MPI_Comm_set_errhandler(messages_, MPI_ERRORS_RETURN));
    }

    ~MpiCommunicator() override {
        int finalized = 0;
        MPI_Finalized(&finalized);
        // Freeing may wait for the other ranks: not on the way out of a failure, which they do not share.
        if (finalized || std::uncaught_exceptions() > errors_at_creation_) return;
        MPI_Comm_free(&messages_);
        MPI_Comm_free(&comm_);
    }

    void progress() override {
        if (in_flight() == 0) return;
        const ExposedTime exposed(name());
        poll_all();
    }

    [[noreturn]] void abort(int status) noexcept override {
        MPI_Abort(MPI_COMM_WORLD, status);
        std::_Exit(status);
    }

protected:
    std::shared_ptr<Communicator> do_split(int color, int key, const std::string& part,
                                           const GroupOptions& options) override {
        check_thread("split");
        LEVIN_CHECK(in_flight() == 0, name(), "split with {} operations in flight", in_flight());
        MPI_Comm comm = MPI_COMM_NULL;
        LEVIN_MPI(MPI_Comm_split(comm_, color < 0 ? MPI_UNDEFINED : color, key, &comm));
        if (comm == MPI_COMM_NULL) return nullptr;
        const std::string full = name() + "." + part;
        if (size_of_group(comm) == 1) {
            LEVIN_MPI(MPI_Comm_free(&comm));
            return make_self_communicator(full);
        }
        std::vector<int> host_of_rank(static_cast<size_t>(size_of_group(comm)));
        LEVIN_MPI(MPI_Allgather(&options.host, 1, MPI_INT, host_of_rank.data(), 1, MPI_INT, comm));
        return std::make_shared<MpiCommunicator>(comm, full, thread_,
                                                 group_by_host(host_of_rank, rank_of(comm)));
    }

    Pending do_all_reduce(const Tensor& tensor, ReduceOp op) override {
        return launch(mpi::all_reduce(call(op == ReduceOp::sum ? "all_reduce" : "all_reduce (max)", &tensor),
                                      tensor, op));
    }
    Pending do_all_gather(const Tensor& part, const Tensor& whole) override {
        return launch(mpi::all_gather(call("all_gather", &whole), part, whole));
    }
    Pending do_reduce_scatter(const Tensor& whole, const Tensor& part, ReduceOp op) override {
        return launch(mpi::reduce_scatter(
            call(op == ReduceOp::sum ? "reduce_scatter" : "reduce_scatter (max)", &whole), whole, part, op));
    }
    Pending do_broadcast(const Tensor& tensor, int root) override {
        return launch(
            mpi::broadcast(call(fmt::format("broadcast from rank {}", root), &tensor), tensor, root));
    }
    Pending do_barrier() override { return launch(mpi::barrier(call("barrier", nullptr))); }
    Pending do_send(const Tensor& tensor, int to) override {
        return launch(mpi::send(message(tensor), tensor, to));
    }
    Pending do_recv(const Tensor& tensor, int from) override {
        return launch(mpi::recv(message(tensor), tensor, from));
    }

private:
    void check_thread(const std::string& call) const {
        LEVIN_CHECK(std::this_thread::get_id() == thread_, name(),
                    "{} from a second thread; only the thread that started MPI communicates", call);
    }
    static void check_device(const std::string& where, const Tensor& tensor) {
        LEVIN_CHECK(tensor.device().is_cpu(), where, "MPI carries CPU tensors, this one is on {}",
                    to_string(tensor.device()));
    }

    Call call(std::string signature, const Tensor* tensor) {
        check_thread(signature);
        if (tensor) {
            check_device(name(), *tensor);
            signature += fmt::format(" of {} {}", tensor->count(), to_string(tensor->dtype()));
        }
        return {comm_, rank(), size(), calls_++, std::move(signature), name(), hosts_};
    }

    Call message(const Tensor& tensor) const {
        check_thread("a message");
        check_device(name(), tensor);
        return {messages_,
                rank(),
                size(),
                -1,
                fmt::format("message of {} {}", tensor.count(), to_string(tensor.dtype())),
                name()};
    }

    MPI_Comm comm_ = MPI_COMM_NULL;
    std::shared_ptr<const Hosts> hosts_;  // null: in one level
    MPI_Comm messages_ = MPI_COMM_NULL;   // send and recv, apart from the collectives' own messages
    int errors_at_creation_;
    std::thread::id thread_;
    int64_t calls_ = 0;
};

}  // namespace

std::shared_ptr<Communicator> make_world_communicator() {
    MPI_Comm comm = MPI_COMM_NULL;
    LEVIN_MPI(MPI_Comm_dup(MPI_COMM_WORLD, &comm));
    if (size_of_group(comm) == 1) {
        LEVIN_MPI(MPI_Comm_free(&comm));
        return make_self_communicator("world");
    }
    return std::make_shared<MpiCommunicator>(comm, "world", std::this_thread::get_id());
}

std::shared_ptr<Communicator> make_host_communicator() {
    MPI_Comm comm = MPI_COMM_NULL;
    LEVIN_MPI(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &comm));
    if (size_of_group(comm) > 1)
        return std::make_shared<MpiCommunicator>(comm, "world.host", std::this_thread::get_id());
    LEVIN_MPI(MPI_Comm_free(&comm));
    return make_self_communicator("world.host");
}

}  // namespace levin::mpi
