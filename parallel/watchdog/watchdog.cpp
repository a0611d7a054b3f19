#include "parallel/watchdog/watchdog.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <random>
#include <sstream>
#include <thread>

#include "parallel/agreement.h"
#include "parallel/timeout.h"
#include "parallel/watchdog/activity.h"
#include "parallel/watchdog/channel.h"
#include "parallel/watchdog/verdict.h"

namespace levin {

namespace {

using Clock = std::chrono::steady_clock;
double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

constexpr double kBeat = 0.5;  // seconds between two reports
// Seconds that the judge listens from the first failure on: another rank that failed before, or was killed,
// may be heard of later. (Where ranks share memory of GPUs and connections, one that is killed can make the
// others' calls fail before its own end is seen.)
constexpr double kConsequence = 1.5;
// Seconds that a rank which failed waits for the judge to end the job.
constexpr double kJudgement = 5;

// Kinds of frames. hello: token and place; state: an Activity; end: a rank ends by itself; failure: a
// Failure, with how long ago it was as its time, since the clocks of hosts differ; verdict: status and text.
constexpr char kHello = 'h', kState = 's', kEnd = 'e', kFailure = 'f', kVerdict = 'v';

double heartbeat_timeout() {
    const char* text = std::getenv("LEVIN_HEARTBEAT_TIMEOUT");
    if (!text || !*text) return 10;
    char* end = nullptr;
    const double value = std::strtod(text, &end);
    LEVIN_REQUIRE(*end == '\0' && value > 0, "environment",
                  "LEVIN_HEARTBEAT_TIMEOUT is \"{}\", must be a number of seconds above 0", text);
    return value;
}

// A Failure, or with the text alone a verdict.
std::string failure_bytes(const Failure& failure) {
    return fmt::format("{}\n{}\n{}\n{}", failure.status, failure.time, failure.place, failure.text);
}
Failure failure_from(const std::string& bytes, int rank) {
    Failure failure{.time = 0, .rank = rank, .status = 1, .text = {}, .place = {}};
    std::istringstream stream(bytes);
    stream >> failure.status >> failure.time;
    stream.ignore();
    std::getline(stream, failure.place);
    std::getline(stream, failure.text, '\0');
    return failure;
}

std::mutex folder_mutex;
std::string message_folder;

}  // namespace

bool Watchdog::keep_message(const std::string& text, int status) {
    if (status != static_cast<int>(Fault::internal) && status != static_cast<int>(Fault::communication))
        return true;
    std::string folder;
    {
        const std::lock_guard lock(folder_mutex);
        folder = message_folder;
    }
    if (folder.empty()) return true;
    const int file = open((folder + "/failure.txt").c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (file < 0) return errno != EEXIST;
    const std::string line = text + "\n";
    // A full disk keeps the message off the disk, not off the screen.
    [[maybe_unused]] const ssize_t written = write(file, line.data(), line.size());
    close(file);
    return true;
}

struct Watchdog::Thread {
    Thread(Communicator& ranks, std::string host_name)
        : rank(ranks.rank()),
          size(ranks.size()),
          host(std::move(host_name)),
          reports(static_cast<size_t>(ranks.size())) {
        limits = {heartbeat_timeout(), communication_timeout()};
        std::string where;
        if (rank == 0) {
            std::random_device device;
            token = fmt::format("{:08x}{:08x}", device(), device());
            listener = listen_anywhere(&port);
            where = fmt::format("{} {} {}", token, port, host);
            for (const std::string& address : own_addresses()) where += " " + address;
        }
        std::istringstream stream(broadcast_text(ranks, where));
        stream >> token >> port >> judge_host;
        for (std::string address; stream >> address;) addresses.push_back(address);
        // Rank 0's own host is reached over its loopback first; from elsewhere that address is another
        // machine's.
        if (judge_host == host)
            std::rotate(addresses.begin(), addresses.end() - 1, addresses.end());
        else
            addresses.pop_back();
        for (int r = 0; r < size; ++r) reports[static_cast<size_t>(r)].rank = r;
        reports[static_cast<size_t>(rank)].host = host;
        thread = std::thread([this] { rank == 0 ? judge() : serve(); });
    }

    ~Thread() {
        stop = true;
        thread.join();
        if (listener >= 0) close(listener);
    }

    // Ends this process; `says`: this rank prints the message.
    [[noreturn]] void end_process(const std::string& text, int status, bool says) {
        std::signal(SIGTERM, SIG_IGN);  // mpirun may already be ending us, and the message comes first
        // The judge speaks in any case: whoever kept a message first may be cut off, and nobody hears it.
        if (says && (keep_message(text, status) || rank == 0)) {
            std::fprintf(stderr, "levin: %s\n", text.c_str());
            std::fflush(stderr);
        }
        if (rank == 0) {
            const std::string verdict =
                failure_bytes({.time = 0, .status = status, .text = text, .place = {}});
            for (Peer& peer : peers) peer.channel.send(kVerdict, verdict);
            std::this_thread::sleep_for(std::chrono::milliseconds(100));
            for (Peer& peer : peers) peer.channel.flush();
        }
        run_emergency_actions();
        _exit(status);
    }

    struct Peer {
        Channel channel;
        int rank = -1;  // until it has said who it is
        Clock::time_point heard = Clock::now();
    };

    // What comes in on a connection.
    void take(Peer& peer, const Frame& frame) {
        peer.heard = Clock::now();
        if (frame.kind == kHello) {
            std::istringstream stream(frame.bytes);
            std::string key, name;
            int number = -1;
            stream >> key >> number >> name;
            if (key != token || number <= 0 || number >= size) return peer.channel.close();
            peer.rank = number;
            RankReport& report = reports[static_cast<size_t>(number)];
            report.host = name;
            report.connected = true;
        } else if (peer.rank < 0) {
            peer.channel.close();
        } else if (frame.kind == kState) {
            reports[static_cast<size_t>(peer.rank)].activity = Activity::from_bytes(frame.bytes);
        } else if (frame.kind == kEnd) {
            note_end(peer.rank, frame.bytes);
        } else if (frame.kind == kFailure) {
            note_failure(failure_from(frame.bytes, peer.rank));
        }
    }

    // `failure`: with how long ago it was as its time. Where the others stand is told as of now.
    void note_failure(Failure failure) {
        failure.time = since(start) - failure.time;
        messages.push_back(failure_text(current(), failure));
        failures.push_back(std::move(failure));
    }

    // Somebody ends by itself: with a fault, the whole job does, and that rank says why.
    void note_end(int who, const std::string& status) {
        reports[static_cast<size_t>(who)].connected = false;
        if (status == "0" || job_ends.exchange(true)) return;
        ending_since = Clock::now();
        ending_status = std::atoi(status.c_str());
    }

    std::vector<RankReport> current() {
        reports[static_cast<size_t>(rank)].activity = current_activity();
        reports[static_cast<size_t>(rank)].connected = true;
        return reports;
    }

    // The end that MPI_Abort brings to every rank; on ranks that it has forgotten, this does.
    void end_with_the_job() {
        if (job_ends && since(ending_since) > 10) _exit(ending_status);
    }

    void judge() {
        Clock::time_point beat = Clock::now(), round = Clock::now(), first_sign{};
        while (!stop) {
            std::vector<pollfd> entries{{listener, POLLIN, 0}};
            for (const Peer& peer : peers) entries.push_back({peer.channel.socket(), POLLIN, 0});
            poll(entries.data(), entries.size(), first_sign == Clock::time_point{} ? 100 : 5);
            // After a pause of the whole machine nobody else is to blame for the silence.
            if (since(round) > 2)
                for (Peer& peer : peers) peer.heard = Clock::now();
            round = Clock::now();
            while (auto channel = accept_from(listener))
                peers.push_back({std::move(*channel), -1, Clock::now()});
            for (Peer& peer : peers) {
                for (const Frame& frame : peer.channel.receive()) take(peer, frame);
                peer.channel.flush();
                if (peer.rank < 0) continue;
                RankReport& report = reports[static_cast<size_t>(peer.rank)];
                report.silent = since(peer.heard);
                if (!peer.channel.open() && report.connected && !job_ends) report.lost = true;
            }
            std::erase_if(peers, [](const Peer& peer) { return !peer.channel.open(); });
            end_with_the_job();
            if (job_ends) continue;
            take_own();
            const std::optional<std::string> text = verdict(current(), limits);
            if (text && !found) {
                found = true;
                note_failure({.text = *text, .place = {}});
            }
            if (!failures.empty() && first_sign == Clock::time_point{}) {
                std::signal(SIGTERM, SIG_IGN);
                first_sign = Clock::now();
            }
            // Losses that go together are told together, but mpirun gives little time.
            const bool loss = std::any_of(reports.begin(), reports.end(),
                                          [](const RankReport& report) { return report.lost; });
            if (loss && since(first_sign) > 0.02)
                end_process(*text, static_cast<int>(Fault::communication), true);
            // Nothing more can come once every rank has failed, as they do where a setting is wrong.
            if (!loss && !failures.empty() &&
                (since(first_sign) > kConsequence || failures.size() == reports.size() + (found ? 1 : 0))) {
                const Failure& first = first_cause(failures);
                end_process(messages[static_cast<size_t>(&first - failures.data())], first.status, true);
            }
            if (since(beat) < kBeat) continue;
            beat = Clock::now();
            const std::string state = current_activity().to_bytes();
            for (Peer& peer : peers)
                if (peer.channel.unsent() < 4096) peer.channel.send(kState, state);
        }
        // A job may be over before everybody's connection was taken.
        while (auto channel = accept_from(listener)) peers.push_back({std::move(*channel), -1, Clock::now()});
        for (Peer& peer : peers) peer.channel.send(kEnd, "0");
    }

    void serve() {
        Peer to_judge;
        for (int tries = 0; !to_judge.channel.open() && !stop; ++tries) {
            if (auto channel = connect_to(addresses, port, 2)) to_judge.channel = std::move(*channel);
            if (tries == 5) {
                std::fprintf(
                    stderr,
                    "levin: warning: rank %d on %s cannot reach rank 0 on %s over TCP: a rank that dies will "
                    "be noticed late\n",
                    rank, host.c_str(), judge_host.c_str());
                alone = true;
                return;
            }
        }
        to_judge.rank = 0;
        to_judge.channel.send(kHello, fmt::format("{} {} {}", token, rank, host));
        RankReport& judge = reports[0];
        judge.host = judge_host;
        judge.connected = true;
        Clock::time_point beat{}, round = Clock::now();
        bool told_by_judge = false;
        while (!stop) {
            pollfd entry{to_judge.channel.socket(), POLLIN, 0};
            poll(&entry, 1, 100);
            if (since(round) > 2) to_judge.heard = Clock::now();
            round = Clock::now();
            for (const Frame& frame : to_judge.channel.receive()) {
                if (frame.kind == kVerdict) {
                    const Failure first = failure_from(frame.bytes, -1);
                    end_process(first.text, first.status, false);
                }
                told_by_judge = true;
                take(to_judge, frame);
            }
            to_judge.channel.flush();
            end_with_the_job();
            if (job_ends || !judge.connected) {
                if (!to_judge.channel.open()) std::this_thread::sleep_for(std::chrono::milliseconds(100));
                continue;
            }
            judge.lost = !to_judge.channel.open();
            judge.silent = since(to_judge.heard);
            if (judge.lost || judge.silent > limits.heartbeat) {
                std::signal(SIGTERM, SIG_IGN);
                // The first of the others says so; a file tells the rest that it is said. A judge that ended
                // before it could tell its reason mostly had one, and takes the job down itself.
                const int pause = std::min(100 * (rank - 1), 2000) + (told_by_judge ? 0 : 2000);
                std::this_thread::sleep_for(std::chrono::milliseconds(pause));
                if (stop) return;  // all had come to the end of the program
                end_process(*verdict(current(), limits), static_cast<int>(Fault::communication), true);
            }
            {
                const std::lock_guard lock(mutex);
                if (own_failure) to_judge.channel.send(kFailure, failure_bytes(told_now()));
                own_failure.reset();
                if (!own_end.empty()) to_judge.channel.send(kEnd, own_end);
                own_end.clear();
                told = true;
            }
            if (since(beat) < kBeat) continue;
            beat = Clock::now();
            if (to_judge.channel.unsent() < 4096)
                to_judge.channel.send(kState, current_activity().to_bytes());
        }
        to_judge.channel.send(kEnd, "0");
    }

    // What the judge's own rank has to tell.
    void take_own() {
        std::string end;
        {
            const std::lock_guard lock(mutex);
            if (own_failure) note_failure(told_now());
            own_failure.reset();
            end = std::move(own_end);
            own_end.clear();
            told = true;
        }
        if (end.empty()) return;
        for (Peer& peer : peers) peer.channel.send(kEnd, end);
        note_end(rank, end);
    }

    // This rank's own failure, with how long ago it was as its time.
    Failure told_now() const {
        Failure failure = *own_failure;
        failure.time = since(start) - failure.time;
        return failure;
    }

    const int rank, size;
    const std::string host;
    Limits limits;
    std::string token, judge_host;
    std::vector<std::string> addresses;
    int port = 0, listener = -1;
    std::vector<RankReport> reports;
    std::vector<Peer> peers;  // of rank 0
    const Clock::time_point start = Clock::now();
    std::vector<Failure> failures;      // that the judge has heard of, by start's clock
    std::vector<std::string> messages;  // about each
    bool found = false;                 // one of them is the judge's own verdict
    std::atomic<bool> stop{false}, told{false}, job_ends{false};
    std::atomic<bool> alone{false};  // rank 0 cannot be reached
    Clock::time_point ending_since{};
    int ending_status = 1;
    std::mutex mutex;
    std::optional<Failure> own_failure;
    std::string own_end;
    std::thread thread;
};

Watchdog::Watchdog(Communicator& ranks, const std::string& host)
    : thread_(std::make_unique<Thread>(ranks, host)) {}
Watchdog::~Watchdog() = default;

void Watchdog::leave(int status) {
    {
        const std::lock_guard lock(thread_->mutex);
        thread_->own_end = std::to_string(status);
        thread_->told = false;
    }
    for (int i = 0; i < 100 && !thread_->told && !thread_->alone; ++i)
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
}

void Watchdog::fail(const std::string& text, int status) {
    const Fall fall = last_fall();
    {
        const std::lock_guard lock(thread_->mutex);
        thread_->own_failure = Failure{.time = since(thread_->start) - fall.seconds,
                                       .rank = thread_->rank,
                                       .status = status,
                                       .text = text,
                                       .place = fall.place};
    }
    for (int i = 0; i < 100 * kJudgement && !thread_->alone; ++i)
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
}

void Watchdog::keep_message_in(const std::string& folder, bool set_aside_old) {
    const std::string file = folder + "/failure.txt";
    if (set_aside_old) std::rename(file.c_str(), (folder + "/failure_before.txt").c_str());
    const std::lock_guard lock(folder_mutex);
    message_folder = folder;
}

}  // namespace levin
