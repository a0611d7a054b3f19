// The program: subcommands in launch/commands/, one exit status per kind of fault (kernels/base/error.h).
#include <fmt/core.h>

#include <csignal>
#include <cstdio>
#include <string_view>

#include "launch/commands/commands.h"
#include "parallel/world.h"
#include "trainer/stop_signal.h"

namespace {

int run(int argc, char** argv) {
    CLI::App app("levin: pre-training of linear-attention language models");
    app.set_version_flag("--version", LEVIN_VERSION);
    app.require_subcommand(1);
    app.failure_message(CLI::FailureMessage::help);
    levin::add_train_command(app);
    levin::add_data_command(app);
    levin::add_tokenizer_command(app);
    levin::add_convert_command(app);
    levin::add_checkpoint_command(app);
    levin::add_parity_command(app);
    levin::add_generate_command(app);
    levin::add_eval_command(app);
    levin::add_report_command(app);
    levin::add_config_command(app);
    levin::add_bench_command(app);
    levin::add_doctor_command(app);
    app.footer(
        "Exit status: 0 done, 2 bad configuration or input, 3 stopped by bad numbers, 4 communication "
        "failed, 1 anything else.");
    try {
        app.parse(argc, argv);
    } catch (const CLI::RuntimeError& error) {
        return error.get_exit_code();
    } catch (const CLI::Success& request) {  // --help, --version
        return app.exit(request);
    } catch (const CLI::ParseError& error) {
        std::string commands;
        bool unknown = argc > 1 && argv[1][0] != '-';
        for (const CLI::App* command : app.get_subcommands({})) {
            commands += " " + command->get_name();
            unknown = unknown && command->get_name() != argv[1];
        }
        if (unknown)
            levin::fail(levin::Fault::input, "usage", "there is no command '{}'. There are:{}", argv[1],
                        commands);
        levin::fail(levin::Fault::input, "usage", "{}\nRun with --help to see what there is.", error.what());
    }
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    // Which command it is must be known before the ranks find each other.
    const bool trains = argc > 1 && std::string_view(argv[1]) == "train";
    levin::watch_signals(trains ? levin::SignalMeaning::stop : levin::SignalMeaning::end);
    // A file over its size limit is an error like a full disk, not the end of the process.
    std::signal(SIGXFSZ, SIG_IGN);
    return levin::run_ranks([&](levin::World&) { return run(argc, argv); });
}
