#include "parallel/mpi/operation.h"

#include <sched.h>

#include <algorithm>
#include <thread>

#include "parallel/timeout.h"

namespace levin::mpi {

namespace {

std::vector<std::shared_ptr<Operation>> flying;
size_t largest_piece = size_t{1} << 30;

}  // namespace

size_t piece_bytes() { return largest_piece; }
void set_piece_bytes(size_t bytes) { largest_piece = bytes; }
size_t in_flight() { return flying.size(); }
void drop_all() { flying.clear(); }

Pending launch(std::shared_ptr<Operation> operation) {
    operation->begin();
    flying.push_back(operation);
    poll_all();
    return operation;
}

void poll_all() {
    for (size_t i = 0; i < flying.size(); ++i) flying[i]->poll();
    std::erase_if(flying, [](const std::shared_ptr<Operation>& operation) { return operation->ended(); });
}

void Operation::post_send(const void* data, size_t bytes, int to, int tag) {
    for (size_t start = 0; start < bytes; start += largest_piece) {
        const int length = static_cast<int>(std::min(largest_piece, bytes - start));
        messages_.push_back({to, false, length});
        LEVIN_MPI(MPI_Isend(static_cast<const char*>(data) + start, length, MPI_BYTE, to, tag, comm_,
                            &requests_.emplace_back(MPI_REQUEST_NULL)));
    }
}

void Operation::post_recv(void* data, size_t bytes, int from, int tag) {
    for (size_t start = 0; start < bytes; start += largest_piece) {
        const int length = static_cast<int>(std::min(largest_piece, bytes - start));
        messages_.push_back({from, true, length});
        LEVIN_MPI(MPI_Irecv(static_cast<char*>(data) + start, length, MPI_BYTE, from, tag, comm_,
                            &requests_.emplace_back(MPI_REQUEST_NULL)));
    }
}

MPI_Request& Operation::post_collective() {
    messages_.push_back({-1, false, 0});
    return requests_.emplace_back(MPI_REQUEST_NULL);
}

void Operation::poll() {
    while (!ended_) {
        if (!requests_.empty()) {
            statuses_.resize(requests_.size());
            int all = 0;
            const int code =
                MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &all, statuses_.data());
            if (code == MPI_SUCCESS && !all) return;
            complete(code);
        }
        requests_.clear();
        messages_.clear();
        advance();
        ended_ = requests_.empty();
    }
}

void Operation::complete(int code) {
    for (size_t i = 0; i < messages_.size(); ++i) {
        const Message& message = messages_[i];
        const int error = code == MPI_ERR_IN_STATUS ? statuses_[i].MPI_ERROR : code;
        if (error != MPI_SUCCESS && error != MPI_ERR_PENDING)
            fail(
                Fault::communication, "mpi",
                "rank {}: {}: the message {} rank {} failed: {}; the ranks disagree about this call, or that "
                "rank has ended",
                world_rank(), what_, message.incoming ? "from" : "to", message.peer, error_text(error));
        if (!message.incoming || code != MPI_SUCCESS) continue;
        int bytes = 0;
        MPI_Get_count(&statuses_[i], MPI_BYTE, &bytes);
        if (bytes != message.bytes)
            fail(Fault::communication, "mpi",
                 "rank {}: {}: rank {} sent {} bytes where {} were expected; the ranks disagree about this "
                 "call",
                 world_rank(), what_, message.peer, bytes, message.bytes);
    }
    if (code != MPI_SUCCESS)
        fail(Fault::communication, "mpi", "rank {}: {}: {}", world_rank(), what_, error_text(code));
}

bool Operation::test() {
    poll_all();
    return ended_;
}

void Operation::wait() {
    using clock = std::chrono::steady_clock;
    const clock::time_point start = clock::now();
    for (int64_t round = 0;; ++round) {
        poll_all();
        if (ended_) return;
        if (round % 64 != 63) {
            // Ranks share cores with each other and with their own kernel threads: never spin without
            // yielding.
            sched_yield();
            continue;
        }
        const double seconds = std::chrono::duration<double>(clock::now() - start).count();
        if (seconds > communication_timeout()) time_out(seconds);
        // A long wait (a peer saves or evaluates) gives the core away for good.
        if (seconds > 0.02) std::this_thread::sleep_for(std::chrono::microseconds(seconds > 1 ? 1000 : 50));
    }
}

void Operation::time_out(double seconds) {
    std::vector<int> missing;
    for (size_t i = 0; i < requests_.size(); ++i) {
        int done = 0;
        MPI_Status status;
        if (messages_[i].peer >= 0 && MPI_Request_get_status(requests_[i], &done, &status) == MPI_SUCCESS &&
            !done && std::find(missing.begin(), missing.end(), messages_[i].peer) == missing.end())
            missing.push_back(messages_[i].peer);
    }
    std::string who;
    for (int rank : missing) who += (who.empty() ? " for rank " : ", ") + std::to_string(rank);
    fail(
        Fault::communication, "mpi",
        "rank {} waited {:.0f} s in {}{}; it hangs, died or never made this call (a longer wait: environment "
        "variable LEVIN_COMMUNICATION_TIMEOUT, in seconds)",
        world_rank(), seconds, what_, who);
}

}  // namespace levin::mpi
