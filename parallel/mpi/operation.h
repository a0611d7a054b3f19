// A started MPI operation and the engine that moves all of them on.
//
// An operation is a few rounds of point-to-point messages with local arithmetic between them. MPI has no
// thread of its own here: rounds advance when somebody polls. Any wait polls everything in flight, of every
// communicator, because a peer may be waiting for the second round of one operation while this rank waits for
// another.
//
// A tag says which call a message belongs to and what kind, count and type of call that was. Ranks that
// disagree therefore never receive each other's data; a rank that waits for long looks for such strangers.
#pragma once

#include <string>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/mpi/check.h"

namespace levin::mpi {

struct Hosts;

// One call of a collective, or one message.
struct Call {
    MPI_Comm comm;
    int rank, size;
    int64_t number;         // of this communicator's collectives; -1 for send and recv
    std::string signature;  // what all ranks that take part must agree on: "all_reduce of 4096 f32"
    std::string where;      // communicator, for error messages
    std::shared_ptr<const Hosts> hosts = {};  // its ranks by host, where it works in two levels
    std::string text() const;                 // "all_reduce of 4096 f32, call 12 on world"
};

class Operation : public Work {
public:
    explicit Operation(Call call);
    ~Operation() override;

    bool test() override;
    // Throws Error(communication) that names the operation and the ranks it waits for when
    // communication_timeout() passes.
    void wait() override;

    // Posts the first messages; called once, by launch().
    virtual void begin() = 0;
    // One step of the engine.
    void poll();
    bool ended() const { return ended_; }
    // Notes it as in flight, for the watchdog and for who measures communication.
    void note();

protected:
    // All messages of a round have ended: do the arithmetic and post the next round. A round without messages
    // ends the operation.
    virtual void advance() {}

    // Round 0 or 1. Nothing is posted for 0 bytes. Messages above piece_bytes() are cut: MPI counts in int.
    void post_send(const void* data, size_t bytes, int to, int round);
    void post_recv(void* data, size_t bytes, int from, int round);
    // Nothing was posted since the messages of the last round ended.
    bool idle() const { return requests_.empty(); }
    int rank() const { return call_.rank; }
    int size() const { return call_.size; }

private:
    struct Message {
        int peer;
        bool incoming;
        int bytes;
    };
    int tag(int round) const { return first_tag_ + round; }
    void complete(int code);
    std::vector<int> missing_peers();
    // In the job, for messages: of a rank of the operation's communicator.
    int rank_in_job(int peer) const;
    // Throws when a rank this one waits for has sent something that belongs to another kind of call.
    void look_for_strangers();
    [[noreturn]] void time_out(double seconds);
    friend void check_agreement();
    friend Pending launch(std::shared_ptr<Operation> operation);

    Call call_;
    int first_tag_;
    uint64_t note_ = 0;
    std::shared_ptr<void> busy_;  // while it is measured
    bool ended_ = false;
    std::vector<MPI_Request> requests_;
    std::vector<MPI_Status> statuses_;
    std::vector<Message> messages_;
};

// Begins an operation and keeps it in flight until it has ended.
Pending launch(std::shared_ptr<Operation> operation);
void poll_all();
// Throws when a peer is found to be in another call than this rank.
void check_agreement();
size_t in_flight();
// Forgets everything in flight (before MPI_Finalize).
void drop_all();

// Largest single message, 1 GiB; a test makes it small, the same on every rank.
size_t piece_bytes();
void set_piece_bytes(size_t bytes);

}  // namespace levin::mpi
