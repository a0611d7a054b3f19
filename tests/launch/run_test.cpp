// launch/run: several ranks, several hosts, what happens when one of them is lost.
#include "tests/launch/program.h"

namespace levin::testing {
namespace {

// `launch/run OPTIONS levin train ..` in the background as $run, and what follows once its checkpoint of step
// 10 is there.
std::string background(const TemporaryFolder& folder, const std::string& options, const std::string& settings,
                       const std::string& then) {
    std::string command = train(folder, "run", "checkpoint.every=10 " + settings);
    command.replace(0, levin().size(), "levin");
    return "export LEVIN_PROGRAM=" + levin() + "; " + source_folder() + "/launch/run " + options + " " +
           command + " & run=$!; for i in $(seq 600); do test -d " +
           (folder / "run/checkpoints/step_00000010") + " && break; sleep 0.1; done; " + then + "; wait $run";
}
const char* const kLastRank = "$(pgrep -P $(pgrep -P $run -x mpirun) | tail -1)";

size_t count(const std::string& text, const std::string& part) {
    size_t found = 0;
    for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
    return found;
}

TEST(Run, ASignalSavesAndEndsWell) {
    const TemporaryFolder folder;
    make_shard(folder);
    const Outcome outcome = shell(background(folder, "-n 2", "trainer.steps=100000", "kill -TERM $run"));
    EXPECT_EQ(outcome.status, 0) << outcome.output;
    EXPECT_TRUE(outcome.says("saved; the same command goes on")) << outcome.output;
    EXPECT_FALSE(outcome.says("\r")) << "a progress line redrawn where nobody sees it";
}

// While mpirun itself starts, while the ranks are loaded, while they find each other.
TEST(Run, ASignalDuringTheStartEndsWellToo) {
    const TemporaryFolder folder;
    make_shard(folder);
    for (const char* seconds : {"0", "0.1", "0.2", "0.4"}) {
        std::string command = train(folder, "run", "trainer.steps=100000");
        command.replace(0, levin().size(), "levin");
        const Outcome outcome =
            shell("export LEVIN_PROGRAM=" + levin() + "; " + source_folder() + "/launch/run -n 2 " + command +
                  " & run=$!; until pgrep -P $run -x mpirun >/dev/null; do sleep 0.01; done; sleep " +
                  seconds + "; kill -TERM $run; wait $run");
        EXPECT_EQ(outcome.status, 0) << seconds << outcome.output;
        EXPECT_TRUE(outcome.says("; the same command ")) << seconds << outcome.output;
    }
}

// A terminal's Ctrl-C reaches launch/run, what reads its words there, and tee; only tee has to end.
TEST(Run, ACtrlCThatEndsTheReaderTooSavesAndEndsWell) {
    const TemporaryFolder folder;
    make_shard(folder);
    std::string command =
        train(folder, "run", "trainer.steps=100000 checkpoint.every=10 trainer.log_every=1");
    command.replace(0, levin().size(), "levin");
    folder.write("script", ctrl_c(folder, "LEVIN_PROGRAM=" + levin() + " " + source_folder() +
                                              "/launch/run -n 2 " + command));
    const Outcome outcome = shell("bash " + (folder / "script"));
    EXPECT_EQ(read_text(folder / "status"), "0\n") << outcome.output;
    const size_t rows = lines(folder / "run/metrics.jsonl").size();
    char name[32];
    std::snprintf(name, sizeof name, "step_%08zu", rows);
    EXPECT_TRUE(std::filesystem::exists(folder / (std::string("run/checkpoints/") + name))) << rows;
}

TEST(Run, ALostRankIsNamedAndTheRunGoesOn) {
    const TemporaryFolder folder;
    make_shard(folder);
    const Outcome lost =
        shell(background(folder, "-n 2", "trainer.steps=100000", std::string("kill -9 ") + kLastRank));
    EXPECT_EQ(lost.status, 4) << lost.output;
    EXPECT_EQ(count(lost.output, "ended without a word"), 1u) << lost.output;
    EXPECT_TRUE(lost.says("rank 1 of 2 on ")) << lost.output;
    EXPECT_TRUE(lost.says(", call ")) << lost.output;
    EXPECT_FALSE(lost.says("mpirun noticed")) << lost.output;
    const std::string kept = read_text(folder / "run/failure.txt");
    EXPECT_NE(kept.find("rank 1 of 2 on "), std::string::npos) << kept;
    std::filesystem::remove_all(folder / "run");

    const Outcome again = shell(
        background(folder, "-n 2 --restarts 1", "trainer.steps=150", std::string("kill -9 ") + kLastRank));
    EXPECT_EQ(again.status, 0) << again.output;
    EXPECT_TRUE(again.says("starting again from the newest good checkpoint (1 of 1)")) << again.output;
    EXPECT_TRUE(again.says("resumed from")) << again.output;
    EXPECT_EQ(lines(folder / "run/metrics.jsonl").size(), 150u);
    EXPECT_TRUE(std::filesystem::exists(folder / "run/failure_before.txt"));
    EXPECT_FALSE(std::filesystem::exists(folder / "run/failure.txt"));
}

TEST(Run, MistakesAreNotTriedAgain) {
    const TemporaryFolder folder;
    make_shard(folder);
    const std::string program = "LEVIN_PROGRAM=" + levin() + " " + source_folder() + "/launch/run ";
    const Outcome wrong = shell(program + "-n 2 --restarts 3 levin train " + source_folder() +
                                "/configs/tiny.yaml trainer.stepz=3");
    EXPECT_EQ(wrong.status, 2) << wrong.output;
    EXPECT_EQ(count(wrong.output, "unknown key trainer.stepz"), 1u) << wrong.output;
    for (const char* options : {"-n two levin", "-n 0 levin", "-n 2", "-n", "--restarts x -n 2 levin",
                                "-n 2 --hostfile none levin"})
        EXPECT_EQ(shell(program + options).status, 2) << options;
    for (const char* hosts : {"", "localhost slot=2\n", "localhost slots=two\n"}) {
        folder.write("hosts", hosts);
        const Outcome refused =
            shell(program + "-n 2 --restarts 3 --hostfile " + (folder / "hosts") + " levin --version");
        EXPECT_EQ(refused.status, 2) << hosts << refused.output;
        EXPECT_EQ(count(refused.output, "a line is: HOST slots=RANKS"), 1u) << hosts << refused.output;
    }
    EXPECT_EQ(shell(program + "-n 2 --hostfile / levin --version").status, 2);
    // The other scripts refuse before they build anything.
    for (const char* command : {"test --bogus", "test -R", "build --preset"}) {
        const Outcome refused = shell(source_folder() + "/launch/" + command);
        EXPECT_EQ(refused.status, 2) << command << "\n" << refused.output;
    }
}

TEST(Run, BenchCommMeasuresEveryGroup) {
    const Outcome outcome =
        shell(mpirun(4) + levin() + " bench comm --tp 2 --mib 0.01,0.5 --repeats 1 --json");
    ASSERT_EQ(outcome.status, 0) << outcome.output;
    const std::pair<std::string, std::string> groups[] = {
        {"world", "4"}, {"world.tp", "2"}, {"world.dp", "2"}};
    for (const auto& [group, ranks] : groups)
        for (const std::string collective :
             {"all_reduce", "reduce_scatter", "all_gather", "broadcast", "ring message"}) {
            const std::string row =
                R"({"group":")" + group + R"(","ranks":)" + ranks + R"(,"collective":")" + collective;
            EXPECT_TRUE(outcome.says(row)) << row << "\n" << outcome.output;
        }
    EXPECT_EQ(shell(levin() + " bench comm").status, 2);
}

TEST(Run, DoctorLooksAtRanksAndLinks) {
    const Outcome outcome = shell(mpirun(3) + levin() + " doctor --ranks");
    ASSERT_EQ(outcome.status, 0) << outcome.output;
    for (const char* word :
         {"versions", "clocks", "shared folder", "links in a host", "3 measured", "latency us"})
        EXPECT_TRUE(outcome.says(word)) << word << outcome.output;
    const Outcome json = shell(mpirun(2) + levin() + " doctor --ranks --json");
    EXPECT_TRUE(json.says("gb_per_second")) << json.output;
}

#ifdef LEVIN_TWO_HOSTS
std::string on_two_hosts(const TemporaryFolder& folder, const std::string& script, int slots = 1) {
    folder.write("script", script);
    return source_folder() + "/tests/launch/two_hosts " + std::to_string(slots) + " bash " +
           (folder / "script");
}

TEST(Run, TwoHostsTrainTogetherAndEitherMayBeLost) {
    const TemporaryFolder folder;
    make_shard(folder);
    for (const std::string host : {"1", "2"}) {
        std::filesystem::remove_all(folder / "run");
        const std::string timed =
            "date +%s%N >" + (folder / "killed") + "; kill -9 $(ip netns pids $LEVIN_HOST_" + host + ")";
        const Outcome outcome = shell(on_two_hosts(
            folder, background(folder, "-n 2 --hostfile $LEVIN_HOSTFILE", "trainer.steps=100000", timed) +
                        "; status=$?; date +%s%N >" + (folder / "ended") + "; exit $status"));
        EXPECT_EQ(outcome.status, 4) << outcome.output;
        const std::string name = "rank " + std::to_string(std::stoi(host) - 1) + " of 2 on host" + host;
        EXPECT_TRUE(outcome.says(name)) << outcome.output;
        EXPECT_NE(read_text(folder / "run/failure.txt").find(name), std::string::npos);
        EXPECT_LT((std::stod(read_text(folder / "ended")) - std::stod(read_text(folder / "killed"))) * 1e-9,
                  15);
    }
    std::filesystem::remove_all(folder / "run");
    const Outcome again =
        shell(on_two_hosts(folder, background(folder, "-n 2 --restarts 1 --hostfile $LEVIN_HOSTFILE",
                                              "trainer.steps=60", "kill -9 $(ip netns pids $LEVIN_HOST_2)")));
    EXPECT_EQ(again.status, 0) << again.output;
    EXPECT_TRUE(again.says("resumed from")) << again.output;
    EXPECT_EQ(lines(folder / "run/metrics.jsonl").size(), 60u);
    std::filesystem::remove_all(folder / "run");
    const Outcome saved = shell(on_two_hosts(folder, background(folder, "-n 2 --hostfile $LEVIN_HOSTFILE",
                                                                "trainer.steps=100000", "kill -TERM $run")));
    EXPECT_EQ(saved.status, 0) << saved.output;
    EXPECT_TRUE(saved.says("saved; the same command goes on")) << saved.output;
}

// Of four ranks on two hosts each host sends its ranks' sum, half the bytes of ranks that know no hosts.
TEST(Run, GradientsCrossTheNetworkOnceAHost) {
    const TemporaryFolder folder;
    make_shard(folder);
    double sent[2] = {}, loss[2] = {};
    for (const bool hierarchical : {false, true}) {
        const std::string run = hierarchical ? "levels" : "flat";
        std::string command = train(folder, run,
                                    "trainer.steps=12 trainer.global_batch=8 parallel.hierarchical=" +
                                        std::string(hierarchical ? "true" : "false"));
        command.replace(0, levin().size(), "levin");
        const std::string bytes =
            "ip netns exec $LEVIN_HOST_1 cat /sys/class/net/eth0/statistics/tx_bytes >>" +
            (folder / (run + ".bytes"));
        const Outcome outcome =
            shell(on_two_hosts(folder,
                               bytes + "; export LEVIN_PROGRAM=" + levin() + "; " + source_folder() +
                                   "/launch/run -n 4 --hostfile $LEVIN_HOSTFILE " + command +
                                   "; status=$?; " + bytes + "; exit $status",
                               2));
        ASSERT_EQ(outcome.status, 0) << outcome.output;
        const std::vector<std::string> counter = lines(folder / (run + ".bytes"));
        ASSERT_EQ(counter.size(), 2u);
        sent[hierarchical] = std::stod(counter[1]) - std::stod(counter[0]);
        const std::string row = lines(folder / (run + "/metrics.jsonl")).back();
        loss[hierarchical] = std::stod(row.substr(row.find("\"loss\":") + 7));
    }
    EXPECT_LT(sent[1], 0.7 * sent[0]) << sent[0] << " bytes without levels";
    EXPECT_NEAR(loss[1], loss[0], 1e-4 * loss[0]);
}
#endif

}  // namespace
}  // namespace levin::testing
