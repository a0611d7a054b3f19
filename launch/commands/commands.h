// The subcommands of levin, one file each. A command parses its options, calls a room and prints; it throws
// levin::Error, and launch/levin.cpp turns that into the message and the exit status.
#pragma once

#include <CLI/CLI.hpp>

namespace levin {

void add_train_command(CLI::App& app);
void add_data_command(CLI::App& app);
void add_tokenizer_command(CLI::App& app);
void add_convert_command(CLI::App& app);
void add_checkpoint_command(CLI::App& app);
void add_parity_command(CLI::App& app);
void add_generate_command(CLI::App& app);
void add_eval_command(CLI::App& app);
void add_report_command(CLI::App& app);
void add_config_command(CLI::App& app);
void add_bench_command(CLI::App& app);
void add_doctor_command(CLI::App& app);

}  // namespace levin
