// levin config: the documentation of every key, and a configuration as a run would see it.
#include "trainer/config.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "launch/commands/commands.h"

namespace levin {

void add_config_command(CLI::App& app) {
    CLI::App* config = app.add_subcommand("config", "Explain the configuration and check a file");
    config->require_subcommand(1);

    CLI::App* docs =
        config->add_subcommand("docs", "Print every key with its type, default and meaning (Markdown)");
    docs->footer("Example: levin config docs > docs/config.md");
    docs->callback([] { std::fputs(config_markdown().c_str(), stdout); });

    CLI::App* show =
        config->add_subcommand("show", "Check a configuration and print it with every key resolved");
    auto path = std::make_shared<std::string>();
    auto overrides = std::make_shared<std::vector<std::string>>();
    show->add_option("CONFIG", *path, "YAML file")->required();
    show->add_option("OVERRIDE", *overrides, "key=value, for example trainer.steps=100");
    show->footer("Example: levin config show configs/tiny.yaml trainer.steps=20");
    show->callback([path, overrides] {
        const Config resolved = load_config(*path, *overrides);
        const std::string parameters = fmt::format("# {} parameters\n", resolved.model.parameter_count());
        std::fputs((parameters + to_yaml(resolved)).c_str(), stdout);
    });
}

}  // namespace levin
