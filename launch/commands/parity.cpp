#include "trainer/parity.h"

#include <fmt/core.h>

#include "launch/commands/commands.h"
#include "launch/commands/options.h"
#include "parallel/world.h"

namespace levin {

void add_parity_command(CLI::App& app) {
    struct Options {
        std::string folder, dtype = "f32", device = "cpu";
        ParityLayout layout;
    };
    auto options = std::make_shared<Options>();
    CLI::App* command =
        app.add_subcommand("parity", "Compare with reference numbers of the published models");
    command->footer(
        "Examples:\n"
        "  levin parity tests/golden/tnl-base --dtype f64\n"
        "  mpirun -n 4 levin parity tests/golden/tnl-base --tp 2 --pp 2");
    command
        ->add_option("DIR", options->folder, "Folder with config.json, model.safetensors, golden.safetensors")
        ->required();
    command->add_option("--device", options->device, "cpu or cuda")->capture_default_str();
    command->add_option("--dtype", options->dtype, "f64, f32 or bf16")->capture_default_str();
    const auto divide = [&](const char* name, int64_t& field, const char* what) {
        command->add_option(name, field, what)->capture_default_str();
    };
    divide("--tp", options->layout.tp,
           "Tensor-parallel ranks (under mpirun; the ranks left over are data parallel)");
    divide("--cp", options->layout.cp, "Context-parallel ranks");
    divide("--pp", options->layout.pp, "Pipeline stages");
    divide("--virtual-stages", options->layout.virtual_stages, "Stages per pipeline rank");
    command->add_option("--zero", options->layout.zero, "Stage of ZeRO, 0 to 3")
        ->check(CLI::Range(0, 3))
        ->capture_default_str();
    command->add_flag("--sequence-scatter", options->layout.sequence_scatter,
                      "Scatter the tokens between blocks over the tensor-parallel ranks");
    command->callback([options] {
        World& world = World::current();
        const Device device = world.size() > 1 && options->device == "cuda" ? world.device(DeviceType::cuda)
                                                                            : parse_device(options->device);
        const auto rows = run_parity(options->folder, parse_float_type(options->dtype), device,
                                     world.communicator(), options->layout);
        bool all = true;
        for (const ParityRow& row : rows) {
            const char* verdict = row.bound < 0 ? "" : row.holds() ? "ok" : "FAILED";
            const std::string bound = row.bound < 0 ? "-" : fmt::format("{:.0e}", row.bound);
            all = all && row.holds();
            if (!world.is_root()) continue;
            fmt::print("{:<62} {:>9.2e}  bound {:>6}  {:<6} {}\n", row.name, row.error, bound, verdict,
                       row.note);
        }
        if (world.is_root())
            fmt::print("{}: {} rows, {}\n", options->folder, rows.size(), all ? "all hold" : "NOT all hold");
        if (!all) throw CLI::RuntimeError(1);
    });
}

}  // namespace levin
