#include "launch/commands/doctor_ranks.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <set>
#include <sstream>

#include "kernels/device_memory.h"
#include "parallel/agreement.h"
#include "parallel/nccl/nccl_communicator.h"

namespace levin {

namespace {

double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
double wall_clock() {
    return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

double median(std::vector<double> values) {
    std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2),
                     values.end());
    return values[values.size() / 2];
}

std::string gpu_of_this_rank(const World& world) {
    const int count = kernels::cuda_device_count();
    if (count == 0) return "-";
    const int index = count == 1 ? 0 : world.place().local_rank;
    if (index >= count) return fmt::format("- ({} ranks for {} GPUs)", world.place().local_size, count);
    return kernels::cuda_device_info(index).name + " " + nccl::gpu_identity(index);
}

std::string versions(const World& world) {
    std::string text = fmt::format("levin {}, {}", LEVIN_VERSION, world.mpi_version());
    if (kernels::cuda_device_count() == 0 || !nccl::built()) return text;
    try {
        return text + ", " + nccl::version();
    } catch (const Error&) {  // not there: doctor without --ranks says what to do
        return text + ", no NCCL";
    }
}

// Seconds that rank `from` takes for one tensor there and back; 0 on the others.
double round_trip(Communicator& world, int from, int to, const Tensor& tensor, int repeats) {
    std::vector<double> times;
    for (int i = 0; i <= repeats; ++i) {
        const double start = now();
        if (world.rank() == from) {
            world.send(tensor, to);
            world.recv(tensor, to);
            kernels::synchronize(tensor.stream());
            if (i > 0) times.push_back(now() - start);  // the first one opens the connection
        } else if (world.rank() == to) {
            world.recv(tensor, from);
            world.send(tensor, from);
            kernels::synchronize(tensor.stream());
        }
    }
    return times.empty() ? 0 : median(times);
}

// How far this rank's clock is ahead of rank 0's, in seconds: the reading with the shortest round trip.
double clock_ahead(Communicator& world) {
    double ahead = 0;
    for (int rank = 1; rank < world.size(); ++rank) {
        double shortest = 1e9;
        for (int i = 0; i < 10; ++i) {
            const Tensor reading = Tensor::zeros({1}, DType::f64);
            if (world.rank() == 0) {
                world.recv(reading, rank);
                reading.data<double>()[0] = wall_clock();
                world.send(reading, rank);
            } else if (world.rank() == rank) {
                const double before = wall_clock();
                world.send(reading, 0);
                world.recv(reading, 0);
                const double after = wall_clock();
                if (after - before >= shortest) continue;
                shortest = after - before;
                ahead = (before + after) / 2 - reading.data<double>()[0];
            }
        }
    }
    return ahead;
}

Finding shared_folder(World& world) {
    char name[] = "./.levin-doctor-XXXXXX";
    std::string token;
    int file = -1;
    if (world.is_root() && (file = mkstemp(name)) >= 0) {
        token = fmt::format("{} {}", name, wall_clock());
        if (write(file, token.data(), token.size()) != static_cast<ssize_t>(token.size())) token.clear();
        fsync(file);
        close(file);
    }
    const std::string expected = broadcast_text(world.all(), token);
    std::string found;
    std::istringstream words(expected);
    std::string path;
    words >> path;
    if (!expected.empty()) std::getline(std::ifstream(path), found);
    const std::vector<std::string> all = gather_texts(world.all(), found);
    if (file >= 0) unlink(name);
    Finding finding{"shared folder", Health::ok, "every rank sees the current folder of rank 0", ""};
    for (size_t r = 0; r < all.size(); ++r) {
        if (!expected.empty() && all[r] == expected) continue;
        finding.health = Health::warn;
        finding.value = expected.empty()
                            ? "rank 0 cannot write to its current folder"
                            : fmt::format("rank {} does not see the current folder of rank 0", r);
        finding.advice = "run.folder and data.train must be on a file system that all hosts share";
        break;
    }
    return finding;
}

std::vector<LinkFacts> measure_links(World& world, const std::vector<RankPlace>& places,
                                     const Device& device) {
    constexpr int kAllPairs = 16;
    Communicator& all = world.all();
    const Tensor small = Tensor::zeros({1}, DType::f64, device),
                 large = Tensor::zeros({2 << 20}, DType::f32, device);
    std::vector<LinkFacts> links;
    std::string mine;
    for (int from = 0; from < all.size(); ++from)
        for (int to = from + 1; to < all.size(); ++to) {
            const int distance = to - from;
            if (all.size() > kAllPairs && (distance & (distance - 1)) != 0) continue;
            const double latency = round_trip(all, from, to, small, 20) / 2;
            const double seconds = round_trip(all, from, to, large, 3) / 2;
            all.barrier();  // one link at a time
            if (all.rank() == from)
                mine += fmt::format("{} {} {} {}\n", from, to, latency * 1e6,
                                    static_cast<double>(large.bytes()) / seconds / 1e9);
        }
    for (const std::string& text : gather_texts(all, mine)) {
        std::istringstream stream(text);
        for (LinkFacts link; stream >> link.from >> link.to >> link.latency_us >> link.gb_per_second;) {
            link.one_host =
                places[static_cast<size_t>(link.from)].host == places[static_cast<size_t>(link.to)].host;
            links.push_back(link);
        }
    }
    return links;
}

}  // namespace

std::vector<Finding> slow_links(const std::vector<LinkFacts>& links, const std::vector<RankFacts>& ranks) {
    std::vector<Finding> findings;
    for (const bool one_host : {true, false}) {
        std::vector<double> rates, latencies;
        for (const LinkFacts& link : links)
            if (link.one_host == one_host) {
                rates.push_back(link.gb_per_second);
                latencies.push_back(link.latency_us);
            }
        if (rates.empty()) continue;
        const double rate = median(rates), latency = median(latencies);
        Finding finding{
            one_host ? "links in a host" : "links of hosts", Health::ok,
            fmt::format("{} measured, typically {:.2f} GB/s and {:.1f} us", rates.size(), rate, latency), ""};
        const LinkFacts* slowest = nullptr;
        for (const LinkFacts& link : links)
            if (link.one_host == one_host &&
                (link.gb_per_second < rate / 2 || link.latency_us > 4 * latency + 20) &&
                (!slowest || link.gb_per_second < slowest->gb_per_second))
                slowest = &link;
        if (slowest) {
            finding.health = Health::warn;
            finding.advice = fmt::format(
                "slow: rank {} on {} to rank {} on {}, {:.2f} GB/s and {:.1f} us: every collective waits for "
                "it; look at "
                "that cable, card or host",
                slowest->from, ranks[static_cast<size_t>(slowest->from)].place.host, slowest->to,
                ranks[static_cast<size_t>(slowest->to)].place.host, slowest->gb_per_second,
                slowest->latency_us);
        }
        findings.push_back(std::move(finding));
    }
    return findings;
}

RanksReport examine_ranks(World& world, bool gpus) {
    RanksReport report;
    const std::vector<RankPlace> places = world.places();
    const double ahead = clock_ahead(world.all()) * 1e3;
    const std::vector<std::string> names = gather_texts(world.all(), gpu_of_this_rank(world));
    const std::vector<std::string> software = gather_texts(world.all(), versions(world));
    const std::vector<std::string> clocks = gather_texts(world.all(), fmt::format("{}", ahead));
    for (size_t r = 0; r < places.size(); ++r)
        report.ranks.push_back({places[r], names[r], software[r], std::stod(clocks[r])});

    Finding versions_finding{"versions", Health::ok, software[0], ""}, gpu{"gpus", Health::ok, "", ""},
        clock{"clocks", Health::ok, "", ""};
    std::set<std::string> distinct;
    double worst = 0;
    for (size_t r = 0; r < report.ranks.size(); ++r) {
        const RankFacts& facts = report.ranks[r];
        if (facts.versions != software[0]) {
            versions_finding.health = Health::warn;
            versions_finding.advice = fmt::format("rank {} on {} has {}: install the same on every host", r,
                                                  facts.place.host, facts.versions);
        }
        if ((facts.gpu[0] == '-') != (names[0][0] == '-')) {
            gpu.health = Health::warn;
            gpu.advice =
                fmt::format("rank {} on {} has {}, rank 0 has {}", r, facts.place.host, facts.gpu, names[0]);
        } else if (facts.gpu[0] != '-' && !distinct.insert(facts.place.host + facts.gpu).second) {
            gpu.health = Health::warn;
            gpu.advice = fmt::format("rank {} on {} shares {} with another rank: start one rank a GPU", r,
                                     facts.place.host, facts.gpu);
        }
        if (std::abs(facts.clock_ahead_ms) > std::abs(worst)) worst = facts.clock_ahead_ms;
        if (std::abs(facts.clock_ahead_ms) > 1000) {
            clock.health = Health::warn;
            clock.advice = fmt::format(
                "the clock of {} is {:.1f} s off: start its time service (logs and file times "
                "mislead)",
                facts.place.host, facts.clock_ahead_ms / 1e3);
        }
    }
    gpu.value =
        names[0][0] == '-' ? "none: the ranks compute on CPUs" : fmt::format("{} different", distinct.size());
    clock.value = fmt::format("at most {:.2f} ms from rank 0's", std::abs(worst));
    report.findings = {versions_finding, gpu, clock, shared_folder(world)};
    if (world.size() > 1) {
        report.links = measure_links(world, places, world.device(gpus ? DeviceType::cuda : DeviceType::cpu));
        for (Finding& finding : slow_links(report.links, report.ranks))
            report.findings.push_back(std::move(finding));
    }
    return report;
}

}  // namespace levin
