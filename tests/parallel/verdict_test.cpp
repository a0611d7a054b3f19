// What the watchdog makes of what the ranks told it.
#include "parallel/watchdog/verdict.h"

#include <gtest/gtest.h>

namespace levin {
namespace {

OperationActivity operation(int64_t number, double seconds,
                            const std::string& signature = "all_reduce of 8 f32") {
    return {.group = "world.dp [0,1,2]",
            .signature = signature,
            .number = number,
            .seconds = seconds,
            .on_gpu = true};
}

std::vector<RankReport> three_ranks() {
    std::vector<RankReport> ranks(3);
    for (int r = 0; r < 3; ++r) {
        RankReport& report = ranks[static_cast<size_t>(r)];
        report.rank = r;
        report.host = r < 2 ? "a" : "b";
        report.connected = true;
        report.activity.place = "step 17, backward";
    }
    return ranks;
}

testing::AssertionResult says(const std::optional<std::string>& text, const std::vector<std::string>& parts) {
    if (!text) return testing::AssertionFailure() << "no verdict";
    for (const std::string& part : parts)
        if (text->find(part) == std::string::npos)
            return testing::AssertionFailure() << part << " is not in:\n" << *text;
    return testing::AssertionSuccess();
}

TEST(Verdict, NothingWhileAllIsWell) {
    std::vector<RankReport> ranks = three_ranks();
    EXPECT_FALSE(verdict(ranks, {}));
    // At different calls, and long in one that the host waits for: MPI's own time limit sees to that.
    ranks[0].activity.operations = {operation(12, 3)};
    ranks[1].activity.operations = {operation(13, 3)};
    ranks[2].activity.operations = {operation(12, 1e6)};
    ranks[2].activity.operations[0].on_gpu = false;
    EXPECT_FALSE(verdict(ranks, {}));
    ranks[1].connected = false;  // has left in good order
    ranks[1].silent = 1e6;
    EXPECT_FALSE(verdict(ranks, {}));
}

TEST(Verdict, LostRanksAreNamedTogether) {
    std::vector<RankReport> ranks = three_ranks();
    ranks[1].lost = ranks[2].lost = true;
    ranks[1].activity.operations = {operation(12, 3)};
    EXPECT_TRUE(says(verdict(ranks, {}), {"rank 1 of 3 on a ended", "step 17, backward",
                                          "in all_reduce of 8 f32, call 12 on world.dp [0,1,2]",
                                          "gone as well: rank 2 on b", "rank 0 on a: step"}));
}

TEST(Verdict, SilentRanksAreNamed) {
    std::vector<RankReport> ranks = three_ranks();
    ranks[2].silent = 11;
    EXPECT_TRUE(
        says(verdict(ranks, {}), {"rank 2 of 3 on b has not been heard of for 11 s", "step 17, backward"}));
    EXPECT_FALSE(verdict(ranks, {.heartbeat = 12, .communication = 100}));
}

TEST(Verdict, DifferentCallsWithOneNumberAreADisagreement) {
    std::vector<RankReport> ranks = three_ranks();
    ranks[0].activity.operations = {operation(12, 3)};
    ranks[2].activity.operations = {operation(12, 3, "all_reduce of 9 f32")};
    EXPECT_TRUE(says(verdict(ranks, {}), {"disagree", "rank 0 of 3 on a is in all_reduce of 8 f32, call 12",
                                          "rank 2 of 3 on b in all_reduce of 9 f32, call 12"}));
    // Messages have no number.
    ranks[0].activity.operations[0].number = ranks[2].activity.operations[0].number = -1;
    EXPECT_FALSE(verdict(ranks, {}));
}

TEST(Verdict, TheRankThatHasNotComeToACallHangs) {
    std::vector<RankReport> ranks = three_ranks();
    ranks[0].activity.operations = {operation(12, 31)};
    ranks[1].activity.operations = {operation(12, 31)};
    ranks[2].activity.place = "step 17, reading data";
    const Limits limits{.heartbeat = 10, .communication = 30};
    EXPECT_TRUE(
        says(verdict(ranks, limits),
             {"rank 2 of 3 on b hangs", "has not come to all_reduce of 8 f32, call 12", "reading data"}));
    ranks[2].activity.operations = {operation(12, 1)};
    EXPECT_TRUE(says(verdict(ranks, limits), {"rank 0 of 3 on a has waited 31 s", "all ranks have begun"}));
}

TEST(Verdict, TroubleOnAGpuIsTold) {
    std::vector<RankReport> ranks = three_ranks();
    ranks[1].activity.trouble = "[cuda] an illegal memory access";
    EXPECT_TRUE(says(verdict(ranks, {}), {"rank 1 of 3 on a: [cuda] an illegal memory access"}));
}

TEST(Verdict, TheFirstFailureIsTheCause) {
    const std::vector<Failure> failures{
        {.time = 3.1, .rank = 0, .status = 4, .text = "[mpi] lost", .place = ""},
        {.time = 3.0, .rank = 2, .status = 1, .text = "[file] full", .place = "step 3, saving"},
        {.time = 3.2, .rank = 1, .status = 1, .text = "[file] full", .place = "step 4"}};
    EXPECT_EQ(&first_cause(failures), &failures[2]);  // said the same as the first, and is the lower rank
    const std::vector<RankReport> ranks = three_ranks();
    EXPECT_EQ(failure_text(ranks, failures[1]), "rank 2 of 3 on b: [file] full; it stood in: step 3, saving");
    EXPECT_TRUE(
        says(failure_text(ranks, failures[0]), {"rank 0 of 3 on a: [mpi] lost\n  rank 1 on a: step"}));
    // A plain mistake of the user needs no place.
    EXPECT_EQ(failure_text(ranks, {.rank = 0, .status = 2, .text = "[config] no", .place = "step 1"}),
              "rank 0 of 3 on a: [config] no");
}

TEST(Verdict, ActivityTravelsAsBytes) {
    Activity activity{.place = "step 3, backward\nwith\ta tab",
                      .seconds = 2.5,
                      .last = "",
                      .operations = {},
                      .trouble = ""};
    activity.operations = {operation(4, 1.25), operation(-1, 0, "message to rank 1 of 5 bf16")};
    const Activity back = Activity::from_bytes(activity.to_bytes());
    EXPECT_EQ(back.place, "step 3, backward with a tab");
    EXPECT_EQ(back.seconds, 2.5);
    ASSERT_EQ(back.operations.size(), 2u);
    EXPECT_EQ(back.operations[0].text(), activity.operations[0].text());
    EXPECT_TRUE(back.operations[0].on_gpu);
    EXPECT_EQ(back.operations[1].text(), "message to rank 1 of 5 bf16 on world.dp [0,1,2]");
    EXPECT_TRUE(Activity::from_bytes("").operations.empty());
    EXPECT_EQ(Activity::from_bytes("a\nb\nc\nd\nno numbers at all").operations.size(), 1u);
}

TEST(Verdict, PlacesNest) {
    const Place outer("step 5");
    {
        const Place inner("backward");
        EXPECT_EQ(current_activity().place, "step 5, backward");
    }
    EXPECT_EQ(current_activity().place, "step 5");
    bool ended = false;
    begin_operation("world", 7, "all_reduce of 1 f64", [&] { return ended; });
    ASSERT_EQ(current_activity().operations.size(), 1u);
    ended = true;
    EXPECT_TRUE(current_activity().operations.empty());
    EXPECT_EQ(current_activity().last, "all_reduce of 1 f64, call 7 on world");
    try {
        const Place inner("forward");
        throw std::runtime_error("so");
    } catch (const std::exception&) {
        EXPECT_EQ(last_fall().place, "step 5, forward, after all_reduce of 1 f64, call 7 on world");
    }
    const Place next("it was mended");
    EXPECT_EQ(last_fall().place, "");
}

}  // namespace
}  // namespace levin
