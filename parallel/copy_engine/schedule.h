// Collectives among the GPUs of one host that its copy engines carry, as lists of steps: who writes what
// where, and which flag tells whom. Pure arithmetic, so that tests can run them in any order (exchange.h runs
// them on GPUs).
//
// Every rank has a window that its peers write into: flags, and for each peer a ring of bytes where chunks
// arrive. A tensor is divided into one share per rank. To reduce, each rank puts its values of a peer's share
// into that peer's ring, and the peer sums what all ranks have in rank order. To gather, each rank puts its
// share into everybody's rings, and they copy it out; or they read it where it lies, if it is exposed to
// them. all_reduce is both, chunk by chunk. Two ranks may also swap whole tensors, and each sums them when it
// needs the sum. A chunk may overwrite a place of the ring when the peer has said that what lay there is
// consumed.
//
// Order matters beyond correctness: streams may share a hardware queue, where a step waits for all steps that
// were queued before it. What a rank sends is therefore always queued before the waiting for what it receives
// in exchange.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

namespace levin::copy_engine {

// Steps of a queue run in order; queues run side by side. `user`: the stream that needs a sum.
enum class Queue : int { reduce_out, gather_out, swap_out, sums, copies, user };
inline constexpr int kQueues = 6;

// What a chunk arrives for: each kind has rings and flags of its own; `pull` has flags alone.
enum class Kind : int { reduce, gather, swap, pull };
inline constexpr int kKinds = 4;

// What a rank's window holds, the same on every rank.
struct Window {
    int ranks = 1;
    std::array<size_t, kKinds> ring{};  // bytes of a peer's ring, by kind

    size_t bytes() const;
    // Offset of the flag that `peer` writes: the number of the last chunk that has arrived from it, or of
    // ours that it has consumed.
    size_t flag(Kind kind, bool consumed, int peer) const;
    // Where the ring begins that `source` writes into in the window of `owner`.
    size_t place(Kind kind, int owner, int source) const;
};

struct Step {
    enum class Action {
        put,     // bytes at `from` of the source tensor -> at `to` of the window of `peer`
        sum,     // `from` of the source and `ring` of all peers' rings, in rank order -> `to` of the target
        copy,    // `from` of the own window -> `to` of the target tensor
        pull,    // `from` of the source tensor of `peer` -> `to` of the target tensor
        wait,    // until the own flag that `peer` writes is at least `value` (of numbers that wrap around)
        signal,  // the flag of `peer` that this rank writes becomes `value`
        follow,  // goes on when what is in queue `after` so far has ended
    };
    Action action;
    Queue queue;
    Kind kind = Kind::reduce;
    int peer = -1;
    bool consumed = false;  // which flag
    uint32_t value = 0;
    size_t from = 0, to = 0, ring = 0, bytes = 0;
    Queue after = Queue::sums;
};
using Steps = std::vector<Step>;

// The steps of one rank. It counts chunks: all ranks ask for the same collectives in the same order.
class Schedule {
public:
    Schedule(const Window& window, int rank) : window_(window), rank_(rank) {}

    // In place over `bytes` of a tensor, any number of elements of `element` bytes; source and target are it.
    // `exposed`: the peers can read it.
    Steps all_reduce(size_t bytes, size_t element, bool exposed = false);
    // Source: ranks * share bytes; target: share bytes.
    Steps reduce_scatter(size_t share);
    // Source: share bytes; target: ranks * share bytes, of which the own share is left to the caller.
    // `exposed`: the peers can read the source, which may change again when its rank's steps have ended.
    Steps all_gather(size_t share, bool exposed = false);
    // all_reduce of two ranks in two halves: out now, and later, in the queue `user`, the sums. The later
    // halves come in the order of the first ones.
    struct Swap {
        Steps out, in;
    };
    Swap swap(size_t bytes);
    // Whether nothing that is sent would have to wait for a half that has not been queued yet (a wrapped ring
    // leaves less than a quarter unused).
    bool can_swap(size_t bytes) const {
        return bytes > 0 && window_.ranks == 2 &&
               (swapped_ + bytes) / 3 <= window_.ring[static_cast<size_t>(Kind::swap)] / 4;
    }
    // The second half of a swap of so many bytes has been queued.
    void settled(size_t bytes) { swapped_ -= bytes; }

private:
    // A place in the rings of one kind: alike on every rank, as all send as much.
    struct Chunk {
        uint32_t number;  // from 1 on
        size_t begin, end;
    };
    struct Ring {
        uint32_t number = 0, overwritten = 0;  // the last chunk, the last one whose place was taken again
        size_t head = 0;
        std::deque<Chunk> chunks;  // whose places were not taken again
    };
    struct Pieces;
    Chunk take(Kind kind, size_t bytes);
    void send(Steps& steps, Queue queue, Kind kind, const Chunk& chunk, int peer, size_t from, size_t bytes);
    void wait(Steps& steps, Queue queue, Kind kind, const Chunk& chunk, int peer);
    void release(Steps& steps, Queue queue, Kind kind, const Chunk& chunk, int peer);
    void reduce(Steps& steps, const Pieces& pieces, size_t c, size_t target);
    void gather(Steps& steps, const Pieces& pieces, size_t c, size_t source);
    void pull(Steps& steps, const Pieces& pieces, size_t c, bool whole);
    void end_pulls(Steps& steps);

    Window window_;
    int rank_;
    std::array<Ring, kKinds> rings_;
    size_t swapped_ = 0;  // bytes whose second half has not been queued
};

}  // namespace levin::copy_engine
