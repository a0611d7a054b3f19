// A rank that fails takes the job down within seconds, with its status and a message that names it. Runs real
// jobs of a small program under mpirun.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "tests/temporary_folder.h"

namespace {

struct Ended {
    int status;
    double seconds;
    std::string output;
    size_t count(const std::string& text) const {
        size_t found = 0;
        for (size_t at = output.find(text); at != std::string::npos; at = output.find(text, at + 1)) ++found;
        return found;
    }
};

Ended run(const std::string& command) {
    const auto start = std::chrono::steady_clock::now();
    std::FILE* pipe = popen((command + " 2>&1").c_str(), "r");
    Ended ended{-1, 0, {}};
    if (!pipe) return ended;
    char buffer[4096];
    for (size_t n; (n = std::fread(buffer, 1, sizeof(buffer), pipe)) > 0;) ended.output.append(buffer, n);
    const int status = pclose(pipe);
    ended.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    ended.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return ended;
}

Ended run_ranks(int ranks, const std::string& how, const std::string& environment = "") {
    return run(environment + " timeout 60 " +
               LEVIN_MPIEXEC " --allow-run-as-root --oversubscribe --bind-to none -n " +
               std::to_string(ranks) + " " + LEVIN_ENDING_RANKS + " " + how);
}

// Starting and ending mpirun takes one or two of these on a busy machine.
constexpr double kSoon = 15;

TEST(Failure, AloneNoMpiIsStarted) {
    const Ended ended = run(std::string(LEVIN_ENDING_RANKS) + " well");
    EXPECT_EQ(ended.status, 0) << ended.output;
    EXPECT_EQ(ended.output, "1 ranks, MPI no\n");
    const Ended failed = run(std::string(LEVIN_ENDING_RANKS) + " all-input");
    EXPECT_EQ(failed.status, 2);
    EXPECT_EQ(failed.output, "levin: [config] the same mistake on every rank\n");
}

TEST(Failure, GoodEnd) {
    for (int ranks : {1, 2, 3}) {
        const Ended ended = run_ranks(ranks, "well");
        EXPECT_EQ(ended.status, 0) << ended.output;
        EXPECT_EQ(ended.output, std::to_string(ranks) + " ranks, MPI yes\n");
    }
}

TEST(Failure, OneRankTakesTheJobDownWithItsStatus) {
    const struct {
        const char *how, *message;
        int status;
    } cases[] = {{"input", "rank 2 of 3 on ", 2},
                 {"numbers", "[loss] is nan", 3},
                 {"communication", "[test] lost", 4},
                 {"exception", "index 5 of 3", 1},
                 {"status", "", 3}};
    for (const auto& c : cases) {
        const Ended ended = run_ranks(3, c.how);
        EXPECT_EQ(ended.status, c.status) << c.how << "\n" << ended.output;
        EXPECT_NE(ended.output.find(c.message), std::string::npos) << ended.output;
        EXPECT_LT(ended.seconds, kSoon) << c.how;
    }
}

TEST(Failure, AMistakeOfAllRanksIsReportedOnce) {
    const Ended ended = run_ranks(3, "all-input");
    EXPECT_EQ(ended.status, 2) << ended.output;
    EXPECT_EQ(ended.count("the same mistake"), 1u) << ended.output;
    EXPECT_EQ(ended.count("levin: rank "), 1u) << ended.output;
}

TEST(Failure, AKilledRankEndsTheJob) {
    const Ended ended = run_ranks(3, "killed");
    EXPECT_NE(ended.status, 0) << ended.output;
    EXPECT_LT(ended.seconds, kSoon);
    EXPECT_NE(ended.output.find("rank 2 of 3 on "), std::string::npos) << ended.output;
    EXPECT_NE(ended.output.find("ended without a word"), std::string::npos) << ended.output;
    EXPECT_EQ(ended.count("last heard in: the end it was told, waiting to be killed"), 1u) << ended.output;
}

TEST(Failure, WhatAKilledRankDoesToOthersIsNotTheMessage) {
    for (const char* how : {"killed-and-felt", "killed-and-accused"}) {
        const Ended ended = run_ranks(3, how);
        EXPECT_NE(ended.status, 0) << ended.output;
        EXPECT_LT(ended.seconds, kSoon);
        EXPECT_NE(ended.output.find("rank 2 of 3 on "), std::string::npos) << ended.output;
        EXPECT_EQ(ended.count("ended without a word"), 1u) << ended.output;
        EXPECT_EQ(ended.count("that the lost rank had to do with"), 0u) << ended.output;
    }
}

TEST(Failure, WhatAFailureDoesToOthersIsNotTheMessage) {
    for (const char* how : {"internal-and-felt", "internal-and-accused"}) {
        const Ended ended = run_ranks(3, how);
        EXPECT_EQ(ended.status, 1) << ended.output;
        EXPECT_LT(ended.seconds, kSoon);
        EXPECT_NE(ended.output.find("rank 2 of 3 on "), std::string::npos) << ended.output;
        EXPECT_EQ(ended.count("no space left"), 1u) << ended.output;
        EXPECT_EQ(ended.count("it stood in: the end it was told, writing what it had computed"), 1u)
            << ended.output;
        EXPECT_EQ(ended.count("that the failed rank had to do with"), 0u) << ended.output;
    }
}

TEST(Failure, ARanksOwnFailureIsKeptInTheRunFolder) {
    const levin::test::TemporaryFolder folder;
    const Ended ended = run_ranks(3, "internal-kept", "LEVIN_TEST_FOLDER=" + folder.path());
    EXPECT_EQ(ended.status, 1) << ended.output;
    const std::string kept = levin::test::read_text(folder / "failure.txt");
    EXPECT_NE(kept.find("rank 2 of 3 on "), std::string::npos) << kept;
    EXPECT_NE(kept.find("no space left"), std::string::npos) << kept;
}

TEST(Failure, AKilledRankZeroIsNamedByAnother) {
    const Ended ended = run_ranks(3, "killed-root");
    EXPECT_NE(ended.status, 0) << ended.output;
    EXPECT_LT(ended.seconds, kSoon);
    EXPECT_NE(ended.output.find("rank 0 of 3 on "), std::string::npos) << ended.output;
    EXPECT_NE(ended.output.find("ended without a word"), std::string::npos) << ended.output;
}

TEST(Failure, AStoppedRankIsNamed) {
    const Ended ended = run_ranks(3, "stopped", "LEVIN_HEARTBEAT_TIMEOUT=3");
    EXPECT_EQ(ended.status, 4) << ended.output;
    EXPECT_NE(ended.output.find("rank 2 of 3 on "), std::string::npos) << ended.output;
    EXPECT_NE(ended.output.find("has not been heard of for 3 s"), std::string::npos) << ended.output;
    EXPECT_LT(ended.seconds, kSoon + 5);
}

TEST(Failure, ARankThatHangsIsNamedWhenTheTimeIsUp) {
    const Ended ended = run_ranks(2, "hangs", "LEVIN_COMMUNICATION_TIMEOUT=2");
    EXPECT_EQ(ended.status, 4) << ended.output;
    EXPECT_NE(ended.output.find("rank 0 waited 2 s in barrier, call "), std::string::npos) << ended.output;
    EXPECT_NE(ended.output.find(" on world for rank 1"), std::string::npos) << ended.output;
    EXPECT_NE(ended.output.find("the end it was told, asleep"), std::string::npos) << ended.output;
    EXPECT_EQ(ended.count("levin: "), 1u) << ended.output;
    EXPECT_LT(ended.seconds, kSoon);
}

TEST(Failure, ARankThatLeavesEarlyIsNoticed) {
    // It waits at the end of the program for the others, who wait for it: the barriers pair up once, then
    // time is up.
    const Ended ended = run_ranks(2, "leaves", "LEVIN_COMMUNICATION_TIMEOUT=2");
    EXPECT_EQ(ended.status, 4) << ended.output;
    EXPECT_LT(ended.seconds, kSoon);
}

TEST(Failure, RanksThatDisagreeAboutACallAreToldSo) {
    for (const char* how : {"other-size", "other-big-size", "other-type", "other-call", "other-message"}) {
        const Ended ended = run_ranks(2, how);
        EXPECT_EQ(ended.status, 4) << how << "\n" << ended.output;
        EXPECT_EQ(ended.count("made another call instead"), 1u) << ended.output;
        EXPECT_LT(ended.seconds, kSoon);
    }
}

TEST(Failure, AWrongTimeoutIsTheUsersMistake) {
    const Ended ended = run_ranks(2, "well", "LEVIN_COMMUNICATION_TIMEOUT=soon");
    EXPECT_EQ(ended.status, 2) << ended.output;
    EXPECT_NE(ended.output.find("\"soon\""), std::string::npos);
}

}  // namespace
