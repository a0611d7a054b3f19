// levin train: from a YAML file and overrides to a run folder.
#include "launch/commands/commands.h"
#include "launch/commands/options.h"
#include "parallel/world.h"
#include "trainer/loop.h"

namespace levin {

void add_train_command(CLI::App& app) {
    struct Options {
        std::string config;
        std::vector<std::string> overrides;
    };
    auto options = std::make_shared<Options>();
    CLI::App* command = app.add_subcommand("train", "Train a model, or go on with a run");
    command->footer(
        "Examples:\n"
        "  levin train configs/tiny.yaml run.folder=runs/tiny data.train=data/text\n"
        "  mpirun -n 2 levin train configs/tiny.yaml run.folder=runs/two data.train=data/text\n"
        "SIGTERM or Ctrl-C saves and ends with status 0; the same command goes on. Every key: "
        "docs/config.md.");
    command->add_option("CONFIG", options->config, "YAML file")->required();
    command->add_option("key=value", options->overrides, "Settings that replace those of the file");
    command->callback([options] {
        const Config config = load_config(options->config, options->overrides);
        if (config.trainer.device == DeviceType::cuda)
            parse_device("cuda");  // one clear line where there is none
        train(config, World::current());
    });
}

}  // namespace levin
