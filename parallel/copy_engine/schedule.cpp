#include "parallel/copy_engine/schedule.h"

#include <algorithm>

namespace levin::copy_engine {

namespace {

constexpr size_t kFlagBytes = 128;  // a line of its own
constexpr size_t kAlignment = 256;
// A put of less than this costs as much as its flags.
constexpr size_t kSmallestChunk = size_t{1} << 20;

using Action = Step::Action;

size_t round_up(size_t value, size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

}  // namespace

size_t Window::flag(Kind kind, bool consumed, int peer) const {
    return static_cast<size_t>((static_cast<int>(kind) * 2 + (consumed ? 1 : 0)) * ranks + peer) * kFlagBytes;
}

size_t Window::place(Kind kind, int owner, int source) const {
    size_t at = round_up(static_cast<size_t>(2 * kKinds * ranks) * kFlagBytes, kAlignment);
    for (size_t before = 0; before < static_cast<size_t>(kind); ++before)
        at += ring[before] * static_cast<size_t>(ranks - 1);
    const int index = (source - owner + ranks) % ranks - 1;  // a rank has no ring for itself
    return at + static_cast<size_t>(index) * ring[static_cast<size_t>(kind)];
}

size_t Window::bytes() const {
    return place(Kind::swap, 0, ranks - 1) + ring[static_cast<size_t>(Kind::swap)];  // the last ring
}

// Chunk c of every rank's share; the last shares may be shorter than the others, or empty.
struct Schedule::Pieces {
    size_t share, total, chunk;

    size_t count() const { return (share + chunk - 1) / chunk; }
    size_t begin(int rank, size_t c) const {
        return std::min(total, static_cast<size_t>(rank) * share + std::min(share, c * chunk));
    }
    size_t bytes(int rank, size_t c) const { return begin(rank, c + 1) - begin(rank, c); }
    size_t most(size_t c) const { return bytes(0, c); }  // over the ranks
};

Schedule::Chunk Schedule::take(Kind kind, size_t bytes) {
    Ring& ring = rings_[static_cast<size_t>(kind)];
    const size_t capacity = window_.ring[static_cast<size_t>(kind)];
    bytes = round_up(bytes, kAlignment);
    const size_t begin = ring.head + bytes <= capacity ? ring.head : 0, end = begin + bytes;
    // Chunks are consumed in order: the last one that lies here stands for those before it.
    for (size_t i = ring.chunks.size(); i-- > 0;)
        if (ring.chunks[i].begin < end && begin < ring.chunks[i].end) {
            ring.overwritten = ring.chunks[i].number;
            ring.chunks.erase(ring.chunks.begin(), ring.chunks.begin() + static_cast<ptrdiff_t>(i) + 1);
            break;
        }
    ring.head = end;
    ring.chunks.push_back({++ring.number, begin, end});
    return ring.chunks.back();
}

void Schedule::send(Steps& steps, Queue queue, Kind kind, const Chunk& chunk, int peer, size_t from,
                    size_t bytes) {
    steps.push_back({.action = Action::wait,
                     .queue = queue,
                     .kind = kind,
                     .peer = peer,
                     .consumed = true,
                     .value = rings_[static_cast<size_t>(kind)].overwritten});
    if (bytes > 0)
        steps.push_back({.action = Action::put,
                         .queue = queue,
                         .kind = kind,
                         .peer = peer,
                         .from = from,
                         .to = window_.place(kind, peer, rank_) + chunk.begin,
                         .bytes = bytes});
    steps.push_back(
        {.action = Action::signal, .queue = queue, .kind = kind, .peer = peer, .value = chunk.number});
}

void Schedule::wait(Steps& steps, Queue queue, Kind kind, const Chunk& chunk, int peer) {
    steps.push_back(
        {.action = Action::wait, .queue = queue, .kind = kind, .peer = peer, .value = chunk.number});
}

void Schedule::release(Steps& steps, Queue queue, Kind kind, const Chunk& chunk, int peer) {
    steps.push_back({.action = Action::signal,
                     .queue = queue,
                     .kind = kind,
                     .peer = peer,
                     .consumed = true,
                     .value = chunk.number});
}

// The target has the own share alone, which begins at `target` of the whole tensor, or the whole tensor (0).
void Schedule::reduce(Steps& steps, const Pieces& pieces, size_t c, size_t target) {
    const Chunk chunk = take(Kind::reduce, pieces.most(c));
    for (int distance = 1; distance < window_.ranks; ++distance) {
        const int peer = (rank_ + distance) % window_.ranks;
        send(steps, Queue::reduce_out, Kind::reduce, chunk, peer, pieces.begin(peer, c),
             pieces.bytes(peer, c));
    }
    const auto peers = [&](const auto& body) {
        for (int peer = 0; peer < window_.ranks; ++peer)
            if (peer != rank_) body(peer);
    };
    peers([&](int peer) { wait(steps, Queue::sums, Kind::reduce, chunk, peer); });
    const size_t begin = pieces.begin(rank_, c), bytes = pieces.bytes(rank_, c);
    if (bytes > 0)
        steps.push_back({.action = Action::sum,
                         .queue = Queue::sums,
                         .from = begin,
                         .to = begin - target,
                         .ring = chunk.begin,
                         .bytes = bytes});
    peers([&](int peer) { release(steps, Queue::sums, Kind::reduce, chunk, peer); });
}

// The source has the own share alone, which begins at `source` of the whole tensor, or the whole tensor (0).
void Schedule::gather(Steps& steps, const Pieces& pieces, size_t c, size_t source) {
    const Chunk chunk = take(Kind::gather, pieces.most(c));
    const size_t begin = pieces.begin(rank_, c), mine = pieces.bytes(rank_, c);
    for (int distance = 1; distance < window_.ranks; ++distance)
        send(steps, Queue::gather_out, Kind::gather, chunk, (rank_ + distance) % window_.ranks,
             begin - source, mine);
    for (int distance = 1; distance < window_.ranks; ++distance) {
        const int peer = (rank_ + window_.ranks - distance) % window_.ranks;  // in the order they send to us
        const size_t bytes = pieces.bytes(peer, c);
        wait(steps, Queue::copies, Kind::gather, chunk, peer);
        if (bytes > 0)
            steps.push_back({.action = Action::copy,
                             .queue = Queue::copies,
                             .kind = Kind::gather,
                             .peer = peer,
                             .from = window_.place(Kind::gather, rank_, peer) + chunk.begin,
                             .to = pieces.begin(peer, c),
                             .bytes = bytes});
        release(steps, Queue::copies, Kind::gather, chunk, peer);
    }
}

// `whole`: the peers' sources are whole tensors, else their shares.
void Schedule::pull(Steps& steps, const Pieces& pieces, size_t c, bool whole) {
    const uint32_t number = ++rings_[static_cast<size_t>(Kind::pull)].number;
    const auto flag = [&](Action action, Queue queue, int peer, bool consumed) {
        steps.push_back({.action = action,
                         .queue = queue,
                         .kind = Kind::pull,
                         .peer = peer,
                         .consumed = consumed,
                         .value = number});
    };
    const auto peers = [&](const auto& body) {
        for (int distance = 1; distance < window_.ranks; ++distance)  // each reads from another one
            body((rank_ + distance) % window_.ranks);
    };
    peers([&](int peer) { flag(Action::signal, Queue::gather_out, peer, false); });
    peers([&](int peer) {
        flag(Action::wait, Queue::copies, peer, false);
        const size_t begin = pieces.begin(peer, c), bytes = pieces.bytes(peer, c);
        if (bytes > 0)
            steps.push_back({.action = Action::pull,
                             .queue = Queue::copies,
                             .kind = Kind::pull,
                             .peer = peer,
                             .from = whole ? begin : begin - pieces.begin(peer, 0),
                             .to = begin,
                             .bytes = bytes});
        flag(Action::signal, Queue::copies, peer, true);
    });
}

// The peers have read what they pull from this rank.
void Schedule::end_pulls(Steps& steps) {
    for (int peer = 0; peer < window_.ranks; ++peer)
        if (peer != rank_)
            steps.push_back({.action = Action::wait,
                             .queue = Queue::copies,
                             .kind = Kind::pull,
                             .peer = peer,
                             .consumed = true,
                             .value = rings_[static_cast<size_t>(Kind::pull)].number});
}

// A kernel that sums has to wait until a product beside it leaves it multiprocessors, and each chunk costs it
// that once: few large chunks. Copies need no multiprocessor, and the first one can begin early: small ones.
Steps Schedule::all_reduce(size_t bytes, size_t element, bool exposed) {
    const auto ranks = static_cast<size_t>(window_.ranks);
    // Shares begin at addresses that vector loads like, as the tensor does; `element` divides kAlignment.
    const size_t share = round_up((bytes / element + ranks - 1) / ranks * element, kAlignment);
    const size_t largest = std::min(window_.ring[static_cast<size_t>(Kind::reduce)],
                                    window_.ring[static_cast<size_t>(Kind::gather)]) /
                           2;
    const Pieces pieces{share, bytes, std::clamp(round_up(share / 4, kAlignment), kSmallestChunk, largest)};
    Steps steps;
    for (size_t c = 0; c < pieces.count(); ++c) {
        reduce(steps, pieces, c, 0);
        steps.push_back({.action = Action::follow, .queue = Queue::gather_out, .after = Queue::sums});
        if (exposed)
            pull(steps, pieces, c, true);
        else
            gather(steps, pieces, c, 0);
    }
    if (exposed) end_pulls(steps);
    return steps;
}

Steps Schedule::reduce_scatter(size_t share) {
    const Pieces pieces{share, share * static_cast<size_t>(window_.ranks),
                        window_.ring[static_cast<size_t>(Kind::reduce)] / 2};
    Steps steps;
    for (size_t c = 0; c < pieces.count(); ++c) reduce(steps, pieces, c, pieces.begin(rank_, 0));
    return steps;
}

Steps Schedule::all_gather(size_t share, bool exposed) {
    const size_t whole = share * static_cast<size_t>(window_.ranks);
    Steps steps;
    if (exposed) {
        pull(steps, {share, whole, share}, 0, false);
        end_pulls(steps);
        return steps;
    }
    const size_t largest = window_.ring[static_cast<size_t>(Kind::gather)] / 4;
    const Pieces pieces{share, whole, std::clamp(round_up(share / 4, kAlignment), kSmallestChunk, largest)};
    for (size_t c = 0; c < pieces.count(); ++c) gather(steps, pieces, c, pieces.begin(rank_, 0));
    return steps;
}

Schedule::Swap Schedule::swap(size_t bytes) {
    const size_t piece = std::max(round_up(bytes / 4, kAlignment), 16 * kSmallestChunk);
    const int peer = 1 - rank_;
    Swap result;
    swapped_ += bytes;
    Chunk chunk{};
    Steps sums;
    for (size_t begin = 0; begin < bytes; begin += piece) {
        const size_t size = std::min(piece, bytes - begin);
        chunk = take(Kind::swap, size);
        send(result.out, Queue::swap_out, Kind::swap, chunk, peer, begin, size);
        // Pieces that lie side by side are summed as one.
        if (!sums.empty() && sums.back().ring + sums.back().bytes == chunk.begin)
            sums.back().bytes += size;
        else
            sums.push_back({.action = Action::sum,
                            .queue = Queue::user,
                            .kind = Kind::swap,
                            .from = begin,
                            .to = begin,
                            .ring = chunk.begin,
                            .bytes = size});
    }
    // Every flag interrupts the stream that waits for it: that of the last piece covers those before it.
    wait(result.in, Queue::user, Kind::swap, chunk, peer);
    result.in.insert(result.in.end(), sums.begin(), sums.end());
    release(result.in, Queue::user, Kind::swap, chunk, peer);
    return result;
}

}  // namespace levin::copy_engine
