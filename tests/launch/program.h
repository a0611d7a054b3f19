// Runs the real program as a user does, and looks at what it leaves.
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "tests/device.h"
#include "tests/temporary_folder.h"

namespace levin::testing {

using test::read_text;
using test::TemporaryFolder;

struct Outcome {
    int status = -1;
    std::string output;  // standard output and error together
    bool says(const std::string& text) const { return output.find(text) != std::string::npos; }
};

inline Outcome shell(const std::string& command) {
    Outcome outcome;
    FILE* pipe = ::popen(("( " + command + " ) 2>&1").c_str(), "r");
    if (!pipe) return outcome;
    char buffer[4096];
    size_t got;
    while ((got = std::fread(buffer, 1, sizeof buffer, pipe)) > 0) outcome.output.append(buffer, got);
    const int status = ::pclose(pipe);
    outcome.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    return outcome;
}

inline std::string levin() { return LEVIN_PROGRAM; }
inline std::string source_folder() { return LEVIN_SOURCE; }
inline std::string mpirun(int ranks) {
    return std::string(LEVIN_MPIEXEC) + " --allow-run-as-root --oversubscribe --bind-to none -n " +
           std::to_string(ranks) + " ";
}

// A byte-tokenized shard of made-up words, PREFIX = folder/text.
inline std::string make_shard(const TemporaryFolder& folder, const std::string& name = "text") {
    std::string text;
    unsigned state = 1;
    while (text.size() < 60000) {
        state = state * 1103515245 + 12345;
        const char* words[] = {"light ", "and ", "the ", "darkness ", "upon ", "water\n", "was ", "good "};
        text += words[(state >> 16) % 8];
    }
    folder.write(name + ".txt", text);
    const Outcome built = shell(levin() + " data build --input " + (folder / (name + ".txt")) +
                                " --tokenizer byte --output " + (folder / name));
    EXPECT_EQ(built.status, 0) << built.output;
    return folder / name;
}

using test::on_gpu;

// Training of the tiny model into folder/run, on the device that LEVIN_TEST_DEVICE names.
inline std::string train(const TemporaryFolder& folder, const std::string& run, const std::string& settings) {
    return levin() + " train " + source_folder() + "/configs/tiny.yaml run.folder=" + (folder / run) +
           " data.train=" + (folder / "text") +
           " trainer.sequence_length=64 trainer.micro_batch=2 trainer.global_batch=4 log.report=false "
           "log.tensorboard=false " +
           (on_gpu() ? "trainer.device=cuda " : "") + settings;
}

// A bash script: `command | tee` as a terminal runs it, and a Ctrl-C to all of it once checkpoint 10 of
// folder/run is there. The status of the command goes to folder/status.
inline std::string ctrl_c(const TemporaryFolder& folder, const std::string& command) {
    return "set -m\n{ trap : INT; " + command + "; echo $? >" + (folder / "status") + "; } 2>&1 | tee " +
           (folder / "log") + " &\nfor i in $(seq 600); do test -d " +
           (folder / "run/checkpoints/step_00000010") +
           " && break; sleep 0.1; done\nkill -INT -- -$(ps -o pgid= -p $! | tr -d ' ')\n"
           "for i in $(seq 300); do test -s " +
           (folder / "status") + " && break; sleep 0.1; done\n";
}

inline std::vector<std::string> lines(const std::string& path) {
    std::vector<std::string> result;
    std::ifstream file(path);
    for (std::string line; std::getline(file, line);) result.push_back(line);
    return result;
}

// metrics.jsonl without what is measured time or memory.
inline std::vector<std::string> exact_metrics(const std::string& run) {
    std::vector<std::string> rows;
    for (std::string row : lines(run + "/metrics.jsonl")) {
        const size_t timing = row.find("\"step_ms\"");
        rows.push_back(row.substr(0, timing));
    }
    return rows;
}

// Bytes of every file of a checkpoint but its manifest, which knows the time.
inline std::string weights(const std::string& run, const std::string& step) {
    std::string all;
    std::set<std::string> files;
    for (const auto& entry : std::filesystem::directory_iterator(run + "/checkpoints/" + step))
        if (entry.path().extension() == ".safetensors") files.insert(entry.path().string());
    EXPECT_FALSE(files.empty()) << run;
    for (const std::string& file : files) all += read_text(file);
    return all;
}

}  // namespace levin::testing
