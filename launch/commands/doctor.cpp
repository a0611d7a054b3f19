// levin doctor: what this machine has and lacks, and what to do about it.
#include <fmt/core.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "launch/commands/commands.h"
#include "launch/commands/doctor_checks.h"
#include "launch/commands/doctor_ranks.h"
#include "parallel/world.h"

namespace levin {

namespace {

std::vector<Finding> examine() {
    std::vector<Finding> findings = {check_processor(), check_memory(), check_threads(),
                                     check_matrix_products(), check_mpi()};
    for (Finding& finding : check_gpus()) findings.push_back(std::move(finding));
    for (Finding (*check)() : {check_disk, check_shared_memory, check_open_files, check_terminal})
        findings.push_back(check());
    return findings;
}

void print(const std::vector<Finding>& findings) {
    for (const Finding& finding : findings) {
        fmt::print("{:<8} {:<16} {}\n", to_string(finding.health), finding.name, finding.value);
        if (!finding.advice.empty()) fmt::print("{:<25} -> {}\n", "", finding.advice);
    }
}

nlohmann::json to_json(const std::vector<Finding>& findings) {
    nlohmann::json list = nlohmann::json::array();
    for (const Finding& finding : findings)
        list.push_back({{"name", finding.name},
                        {"health", to_string(finding.health)},
                        {"value", finding.value},
                        {"advice", finding.advice}});
    return list;
}

void print(const RanksReport& report) {
    fmt::print("\n{:>6} {:>6} {:>6} {:>8} {:>10}  {:<16} {}\n", "rank", "local", "cores", "threads",
               "clock ms", "host", "gpu");
    for (size_t rank = 0; rank < report.ranks.size(); ++rank) {
        const RankFacts& facts = report.ranks[rank];
        fmt::print("{:>6} {:>6} {:>6} {:>8} {:>10.2f}  {:<16} {}\n", rank, facts.place.local_rank,
                   facts.place.cores, facts.place.threads, facts.clock_ahead_ms, facts.place.host, facts.gpu);
    }
    if (report.links.empty()) return;
    fmt::print("\n{:>6} {:>6} {:>10} {:>12}\n", "from", "to", "GB/s", "latency us");
    for (const LinkFacts& link : report.links)
        fmt::print("{:>6} {:>6} {:>10.2f} {:>12.1f}\n", link.from, link.to, link.gb_per_second,
                   link.latency_us);
}

nlohmann::json to_json(const RanksReport& report) {
    nlohmann::json ranks = nlohmann::json::array(), links = nlohmann::json::array();
    for (size_t rank = 0; rank < report.ranks.size(); ++rank) {
        const RankFacts& facts = report.ranks[rank];
        ranks.push_back({{"rank", rank},
                         {"local_rank", facts.place.local_rank},
                         {"cores", facts.place.cores},
                         {"threads", facts.place.threads},
                         {"host", facts.place.host},
                         {"gpu", facts.gpu},
                         {"versions", facts.versions},
                         {"clock_ahead_ms", facts.clock_ahead_ms}});
    }
    for (const LinkFacts& link : report.links)
        links.push_back({{"from", link.from},
                         {"to", link.to},
                         {"gb_per_second", link.gb_per_second},
                         {"latency_us", link.latency_us}});
    return {{"findings", to_json(report.findings)}, {"ranks", ranks}, {"links", links}};
}

}  // namespace

void add_doctor_command(CLI::App& app) {
    struct Options {
        bool json = false, ranks = false, gpus = false;
    };
    auto options = std::make_shared<Options>();
    CLI::App* command = app.add_subcommand("doctor", "What this machine has and lacks, and what to do");
    command->footer(
        "Examples: levin doctor\n"
        "          launch/run -n 4 levin doctor --ranks\n"
        "Each line starts with ok, warn (works, but badly) or missing (not there; the arrow says whether "
        "that "
        "matters).");
    command->add_flag("--json", options->json, "Print one JSON object");
    command->add_flag("--ranks", options->ranks,
                      "Under mpirun: every rank's host, cores, GPU and clock, and the speed of every link");
    command->add_flag("--gpus", options->gpus, "With --ranks: the links between GPUs, over NCCL");
    command->callback([options] {
        World& world = World::current();
        if (options->ranks) {
            const RanksReport report = examine_ranks(world, options->gpus);
            if (!world.is_root()) return;
            if (options->json) {
                fmt::print("{}\n", to_json(report).dump(2));
                return;
            }
            print(report.findings);
            print(report);
            return;
        }
        if (!world.is_root()) return;  // the other ranks have the same to say, and measuring needs the cores
        const std::vector<Finding> findings = examine();
        if (options->json)
            fmt::print("{}\n", nlohmann::json{{"findings", to_json(findings)}}.dump(2));
        else
            print(findings);
    });
}

}  // namespace levin
