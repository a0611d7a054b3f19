#include "trainer/parity.h"

#include <fmt/core.h>

#include "launch/commands/commands.h"
#include "launch/commands/options.h"

namespace levin {

void add_parity_command(CLI::App& app) {
    struct Options {
        std::string folder, dtype = "f32", device = "cpu";
    };
    auto options = std::make_shared<Options>();
    CLI::App* command =
        app.add_subcommand("parity", "Compare with reference numbers of the published models");
    command->footer("Example: levin parity tests/golden/tnl-base --dtype f64");
    command
        ->add_option("DIR", options->folder, "Folder with config.json, model.safetensors, golden.safetensors")
        ->required();
    command->add_option("--device", options->device, "cpu or cuda")->capture_default_str();
    command->add_option("--dtype", options->dtype, "f64, f32 or bf16")->capture_default_str();
    command->callback([options] {
        const auto rows =
            run_parity(options->folder, parse_float_type(options->dtype), parse_device(options->device));
        bool all = true;
        for (const ParityRow& row : rows) {
            const char* verdict = row.bound < 0 ? "" : row.holds() ? "ok" : "FAILED";
            const std::string bound = row.bound < 0 ? "-" : fmt::format("{:.0e}", row.bound);
            fmt::print("{:<62} {:>9.2e}  bound {:>6}  {:<6} {}\n", row.name, row.error, bound, verdict,
                       row.note);
            all = all && row.holds();
        }
        fmt::print("{}: {} rows, {}\n", options->folder, rows.size(), all ? "all hold" : "NOT all hold");
        if (!all) throw CLI::RuntimeError(1);
    });
}

}  // namespace levin
