// levin report: report.html of one run, or of several drawn over each other.
#include "trainer/report.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "launch/commands/commands.h"

namespace levin {

void add_report_command(CLI::App& app) {
    CLI::App* report =
        app.add_subcommand("report", "Draw the curves of one run, or of several for comparison");
    auto folders = std::make_shared<std::vector<std::string>>();
    auto output = std::make_shared<std::string>();
    report->add_option("RUN", *folders, "Run folders (each holds metrics.jsonl)")->required();
    report->add_option(
        "-o,--output", *output,
        "The page to write; default: report.html in the first run's folder, with several runs compare.html");
    report->footer("Example: levin report runs/quickstart runs/ablation --output compare.html");
    report->callback([folders, output] {
        if (output->empty())
            *output = folders->front() + (folders->size() == 1 ? "/report.html" : "/compare.html");
        write_report(*folders, *output);
        std::printf("wrote %s\n", output->c_str());
    });
}

}  // namespace levin
