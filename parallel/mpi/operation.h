// A started MPI operation and the engine that moves all of them on.
//
// An operation is a few rounds of point-to-point messages with local arithmetic between them. MPI has no
// thread of its own here: rounds advance when somebody polls. Any wait polls everything in flight, of every
// communicator, because a peer may be waiting for the second round of one operation while this rank waits for
// another.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/mpi/check.h"

namespace levin::mpi {

class Operation : public Work {
public:
    // `what` is for messages: "all_reduce 12 of 4096 f32 on world".
    explicit Operation(MPI_Comm comm, std::string what) : comm_(comm), what_(std::move(what)) {}

    bool test() override;
    // Throws Error(communication) that names the operation and the ranks it waits for when
    // communication_timeout() passes.
    void wait() override;

    // Posts the first messages; called once, by launch().
    virtual void begin() = 0;
    // One step of the engine.
    void poll();
    bool ended() const { return ended_; }

protected:
    // All messages of a round have ended: do the arithmetic and post the next round. A round without messages
    // ends the operation.
    virtual void advance() {}

    // Nothing is posted for 0 bytes. Messages above piece_bytes() are cut: MPI counts in int.
    void post_send(const void* data, size_t bytes, int to, int tag);
    void post_recv(void* data, size_t bytes, int from, int tag);
    // Non-blocking collectives of MPI itself.
    MPI_Request& post_collective();
    MPI_Comm comm() const { return comm_; }

private:
    struct Message {
        int peer;  // -1: a collective
        bool incoming;
        int bytes;
    };
    void complete(int code);
    [[noreturn]] void time_out(double seconds);

    MPI_Comm comm_;
    std::string what_;
    bool ended_ = false;
    std::vector<MPI_Request> requests_;
    std::vector<MPI_Status> statuses_;
    std::vector<Message> messages_;
};

// Begins an operation and keeps it in flight until it has ended.
Pending launch(std::shared_ptr<Operation> operation);
void poll_all();
size_t in_flight();
// Forgets everything in flight (before MPI_Finalize).
void drop_all();

// Largest single message, 1 GiB; a test makes it small, the same on every rank.
size_t piece_bytes();
void set_piece_bytes(size_t bytes);

}  // namespace levin::mpi
