// The program: subcommands in launch/commands/, one exit status per kind of fault (kernels/base/error.h).
#include <fcntl.h>
#include <fmt/core.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
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

// A file opened while 0, 1 or 2 is closed would get its number, and what is printed would land in the file.
void occupy_standard_files() {
    int descriptor = ::open("/dev/null", O_RDWR);
    while (descriptor >= 0 && descriptor <= STDERR_FILENO) descriptor = ::open("/dev/null", O_RDWR);
    if (descriptor > STDERR_FILENO) ::close(descriptor);
}

// What a command found out is lost where its output cannot be written; a run of training is not.
int printed(int status) {
    errno = 0;
    if (std::fflush(stdout) == 0 && !std::ferror(stdout)) return status;
    levin::fail(levin::Fault::internal, "output", "standard output cannot be written{}{}", errno ? ": " : "",
                errno ? std::strerror(errno) : "");
}

}  // namespace

int main(int argc, char** argv) {
    occupy_standard_files();
    // Which command it is must be known before the ranks find each other.
    const bool trains = argc > 1 && std::string_view(argv[1]) == "train";
    levin::watch_signals(trains ? levin::SignalMeaning::stop : levin::SignalMeaning::end);
    // A file over its size limit is an error like a full disk, not the end of the process.
    std::signal(SIGXFSZ, SIG_IGN);
    // Ctrl-C also ends whoever reads the output (levin train .. | tee log), and the run must be saved all the
    // same.
    if (trains) std::signal(SIGPIPE, SIG_IGN);
    return levin::run_ranks(
        [&](levin::World&) { return trains ? run(argc, argv) : printed(run(argc, argv)); });
}
