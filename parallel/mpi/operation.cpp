#include "parallel/mpi/operation.h"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <thread>

#include "parallel/communication_meter.h"
#include "parallel/timeout.h"
#include "parallel/watchdog/activity.h"

namespace levin::mpi {

namespace {

std::vector<std::shared_ptr<Operation>> flying;
size_t largest_piece = size_t{1} << 30;

// Tag = signature * kTags + (call number mod kTags / 2) * 2 + round. MPI guarantees tags up to 32767; what
// the library offers beyond that carries the signature. Never are 16384 calls in flight.
constexpr int64_t kTags = 32768;

int64_t signatures() {
    static const int64_t count = [] {
        void* bound = nullptr;
        int found = 0;
        LEVIN_MPI(MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, &bound, &found));
        return found ? (int64_t{*static_cast<int*>(bound)} + 1) / kTags : 1;
    }();
    return count;
}

// FNV-1a: the same in every process, unlike what std::hash promises.
uint64_t hash(const std::string& text) {
    uint64_t value = 14695981039346656037u;
    for (const char c : text) value = (value ^ static_cast<unsigned char>(c)) * 1099511628211u;
    return value ^ (value >> 32);
}

}  // namespace

std::string Call::text() const {
    return number < 0 ? fmt::format("{} on {}", signature, where)
                      : fmt::format("{}, call {} on {}", signature, number, where);
}

Operation::Operation(Call call) : call_(std::move(call)) {
    const auto signature = static_cast<int64_t>(hash(call_.signature) % static_cast<uint64_t>(signatures()));
    first_tag_ = static_cast<int>(signature * kTags + std::max<int64_t>(call_.number, 0) % (kTags / 2) * 2);
}

Operation::~Operation() {
    if (note_) end_operation(note_);
}

void Operation::note() {
    note_ = begin_operation(call_.where, call_.number, call_.signature);
    if (CommunicationMeter* meter = CommunicationMeter::current()) busy_ = meter->begin(call_.where);
}

int Operation::rank_in_job(int peer) const {
    MPI_Group all = MPI_GROUP_NULL, mine = MPI_GROUP_NULL;
    int rank = peer;
    if (MPI_Comm_group(MPI_COMM_WORLD, &all) == MPI_SUCCESS &&
        MPI_Comm_group(call_.comm, &mine) == MPI_SUCCESS)
        MPI_Group_translate_ranks(mine, 1, &peer, all, &rank);
    if (mine != MPI_GROUP_NULL) MPI_Group_free(&mine);
    if (all != MPI_GROUP_NULL) MPI_Group_free(&all);
    return rank;
}

size_t piece_bytes() { return largest_piece; }
void set_piece_bytes(size_t bytes) { largest_piece = bytes; }
size_t in_flight() { return flying.size(); }
void drop_all() { flying.clear(); }

Pending launch(std::shared_ptr<Operation> operation) {
    const ExposedTime exposed(operation->call_.where);
    operation->note();
    operation->begin();
    flying.push_back(operation);
    poll_all();
    return operation;
}

void poll_all() {
    for (size_t i = 0; i < flying.size(); ++i) flying[i]->poll();
    std::erase_if(flying, [](const std::shared_ptr<Operation>& operation) { return operation->ended(); });
}

void Operation::post_send(const void* data, size_t bytes, int to, int round) {
    for (size_t start = 0; start < bytes; start += largest_piece) {
        const int length = static_cast<int>(std::min(largest_piece, bytes - start));
        messages_.push_back({to, false, length});
        LEVIN_MPI(MPI_Isend(static_cast<const char*>(data) + start, length, MPI_BYTE, to, tag(round),
                            call_.comm, &requests_.emplace_back(MPI_REQUEST_NULL)));
    }
}

void Operation::post_recv(void* data, size_t bytes, int from, int round) {
    for (size_t start = 0; start < bytes; start += largest_piece) {
        const int length = static_cast<int>(std::min(largest_piece, bytes - start));
        messages_.push_back({from, true, length});
        LEVIN_MPI(MPI_Irecv(static_cast<char*>(data) + start, length, MPI_BYTE, from, tag(round), call_.comm,
                            &requests_.emplace_back(MPI_REQUEST_NULL)));
    }
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
    if (ended_ && note_) {
        end_operation(note_);
        note_ = 0;
        busy_.reset();
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
                world_rank(), call_.text(), message.incoming ? "from" : "to", rank_in_job(message.peer),
                error_text(error));
        if (!message.incoming || code != MPI_SUCCESS) continue;
        int bytes = 0;
        MPI_Get_count(&statuses_[i], MPI_BYTE, &bytes);
        if (bytes != message.bytes)
            fail(Fault::communication, "mpi",
                 "rank {}: {}: rank {} sent {} bytes where {} were expected; the ranks disagree about this "
                 "call",
                 world_rank(), call_.text(), rank_in_job(message.peer), bytes, message.bytes);
    }
    if (code != MPI_SUCCESS)
        fail(Fault::communication, "mpi", "rank {}: {}: {}", world_rank(), call_.text(), error_text(code));
}

bool Operation::test() {
    const ExposedTime exposed(call_.where);
    poll_all();
    return ended_;
}

void Operation::wait() {
    using clock = std::chrono::steady_clock;
    const ExposedTime exposed(call_.where);
    const clock::time_point start = clock::now();
    double next_look = 0.5;
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
        if (seconds > next_look) {
            check_agreement();
            next_look = seconds + 0.5;
        }
        // A long wait (a peer saves or evaluates) gives the core away for good.
        if (seconds > 0.02) std::this_thread::sleep_for(std::chrono::microseconds(seconds > 1 ? 1000 : 50));
    }
}

std::vector<int> Operation::missing_peers() {
    std::vector<int> missing;
    for (size_t i = 0; i < requests_.size(); ++i) {
        int done = 0;
        MPI_Status status;
        if (MPI_Request_get_status(requests_[i], &done, &status) == MPI_SUCCESS && !done &&
            std::find(missing.begin(), missing.end(), messages_[i].peer) == missing.end())
            missing.push_back(messages_[i].peer);
    }
    return missing;
}

void check_agreement() {
    for (const std::shared_ptr<Operation>& operation : flying) operation->look_for_strangers();
}

void Operation::look_for_strangers() {
    for (const int peer : missing_peers()) {
        int waiting = 0;
        MPI_Status status;
        // The oldest message of that rank that nobody here asked for. Of a later call, it is only early.
        LEVIN_MPI(MPI_Iprobe(peer, MPI_ANY_TAG, call_.comm, &waiting, &status));
        if (!waiting || status.MPI_TAG % kTags / 2 != first_tag_ % kTags / 2 ||
            status.MPI_TAG / kTags == first_tag_ / kTags)
            continue;
        int bytes = 0;
        MPI_Get_count(&status, MPI_BYTE, &bytes);
        fail(Fault::communication, "mpi",
             "rank {} is in {}, but rank {} made another call instead and sent {} bytes; the ranks disagree, "
             "which is a bug or two different programs",
             world_rank(), call_.text(), rank_in_job(peer), bytes);
    }
}

void Operation::time_out(double seconds) {
    std::string who;
    for (const int peer : missing_peers())
        who += (who.empty() ? " for rank " : ", ") + std::to_string(rank_in_job(peer));
    fail(Fault::communication, "mpi",
         "rank {} waited {:.0f} s in {}{}; that rank hangs, died or never made this call (a longer wait: "
         "environment variable LEVIN_COMMUNICATION_TIMEOUT, in seconds)",
         world_rank(), seconds, call_.text(), who);
}

}  // namespace levin::mpi
