// levin train: from a YAML file and overrides to a run folder.
#include <cstdlib>
#include <string>

#include "launch/commands/commands.h"
#include "launch/commands/options.h"
#include "parallel/world.h"
#include "trainer/loop.h"

namespace levin {

namespace {

// Tasks that srun started without PMIx know nothing of each other, and each would train the whole run.
void refuse_strangers(const World& world) {
    const char* tasks = std::getenv("SLURM_STEP_NUM_TASKS");
    LEVIN_REQUIRE(
        world.uses_mpi() || !tasks || std::string(tasks) == "1", "ranks",
        "srun started {} tasks that cannot find each other, and all of them would write the same run; "
        "use srun --mpi=pmix (srun --mpi=list shows what this Slurm has) or launch/slurm.sbatch",
        tasks);
}

}  // namespace

void add_train_command(CLI::App& app) {
    struct Options {
        std::string config;
        std::vector<std::string> overrides;
    };
    auto options = std::make_shared<Options>();
    CLI::App* command = app.add_subcommand("train", "Train a model, or go on with a run");
    command->footer(
        "Examples:\n"
        "  levin train configs/tiny.yaml run.folder=runs/tiny data.train=runs/data/text\n"
        "  mpirun -n 2 levin train configs/tiny.yaml run.folder=runs/two data.train=runs/data/text\n"
        "SIGTERM or Ctrl-C saves and ends with status 0; the same command goes on. Every key: "
        "docs/config.md.");
    command->add_option("CONFIG", options->config, "YAML file")->required();
    command->add_option("key=value", options->overrides, "Settings that replace those of the file");
    command->callback([options] {
        refuse_strangers(World::current());
        const Config config = load_config(options->config, options->overrides);
        if (config.trainer.device == DeviceType::cuda)
            parse_device("cuda");  // one clear line where there is none
        train(config, World::current());
    });
}

}  // namespace levin
