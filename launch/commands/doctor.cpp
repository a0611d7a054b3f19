// levin doctor: what this machine has and lacks, and what to do about it.
#include <fmt/core.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "launch/commands/commands.h"
#include "launch/commands/doctor_checks.h"
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

void print(const std::vector<RankPlace>& places) {
    fmt::print("{:>6} {:>6} {:>6} {:>8}  {}\n", "rank", "local", "cores", "threads", "host");
    for (size_t rank = 0; rank < places.size(); ++rank)
        fmt::print("{:>6} {:>6} {:>6} {:>8}  {}\n", rank, places[rank].local_rank, places[rank].cores,
                   places[rank].threads, places[rank].host);
}

nlohmann::json to_json(const std::vector<RankPlace>& places) {
    nlohmann::json list = nlohmann::json::array();
    for (size_t rank = 0; rank < places.size(); ++rank)
        list.push_back({{"rank", rank},
                        {"local_rank", places[rank].local_rank},
                        {"cores", places[rank].cores},
                        {"threads", places[rank].threads},
                        {"host", places[rank].host}});
    return list;
}

}  // namespace

void add_doctor_command(CLI::App& app) {
    struct Options {
        bool json = false, ranks = false;
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
    command->add_flag("--ranks", options->ranks, "Under mpirun: a line per rank, with its host and cores");
    command->callback([options] {
        const World& world = World::current();
        std::vector<RankPlace> places;
        if (options->ranks) places = world.places();
        if (!world.is_root()) return;  // the other ranks have the same to say, and measuring needs the cores
        const std::vector<Finding> findings = options->ranks ? std::vector<Finding>{check_mpi()} : examine();
        if (options->json) {
            nlohmann::json report = {{"findings", to_json(findings)}};
            if (options->ranks) report["ranks"] = to_json(places);
            fmt::print("{}\n", report.dump(2));
            return;
        }
        print(findings);
        if (options->ranks) print(places);
    });
}

}  // namespace levin
