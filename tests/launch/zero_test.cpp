// parallel.zero: the same run whatever the ranks keep in shares, and at whatever stage it is resumed.
#include "tests/launch/program.h"

namespace levin::testing {
namespace {

std::string zero(int stage) { return " parallel.zero=" + std::to_string(stage) + " "; }

std::vector<double> losses(const std::string& run) {
    std::vector<double> values;
    for (const std::string& row : exact_metrics(run))
        values.push_back(std::stod(row.substr(row.find("\"loss\":") + 7)));
    return values;
}

TEST(Zero, EveryStageIsTheSameRun) {
    const TemporaryFolder folder;
    make_shard(folder);
    for (const char* precision : {"f32", "bf16"}) {
        std::vector<std::string> expected;
        for (const int stage : {0, 1, 2, 3}) {
            const std::string run = std::string(precision) + std::to_string(stage);
            // Buckets of one MiB are many; two micro-batches an update; five batches of validation on two
            // ranks.
            const Outcome outcome =
                shell(mpirun(2) + train(folder, run,
                                        zero(stage) +
                                            "trainer.steps=5 trainer.global_batch=8 parallel.bucket_mib=1 "
                                            "trainer.eval_every=2 trainer.eval_batches=1 data.validation=" +
                                            (folder / "text") + " trainer.precision=" + precision));
            ASSERT_EQ(outcome.status, 0) << outcome.output;
            const std::vector<std::string> rows = exact_metrics(folder / run);
            ASSERT_EQ(rows.size(), 5u);
            if (stage == 0) expected = rows;
            if (stage < 3) {
                EXPECT_EQ(rows, expected) << precision << " stage " << stage;
                continue;
            }
            // Buckets of one layer each: the gradient norm is summed in another order, in float64.
            const std::vector<double> values = losses(folder / run),
                                      first = losses(folder / (std::string(precision) + "0"));
            for (size_t i = 0; i < values.size(); ++i)
                EXPECT_NEAR(values[i], first[i], 1e-6 * first[i]) << precision << " step " << i + 1;
        }
    }
}

TEST(Zero, RunsGoOnAtAnotherStageAndNumberOfRanks) {
    const TemporaryFolder folder;
    make_shard(folder);
    const std::string batch = " trainer.global_batch=12 checkpoint.every=2 ";
    ASSERT_EQ(shell(train(folder, "whole", batch + "trainer.steps=10")).status, 0);
    const struct {
        int ranks, stage, steps;
    } legs[] = {{2, 1, 2}, {3, 3, 4}, {1, 0, 6}, {2, 2, 8}, {3, 0, 10}};
    for (const auto& leg : legs) {
        const Outcome outcome = shell(
            (leg.ranks > 1 ? mpirun(leg.ranks) : std::string()) +
            train(folder, "legs", batch + zero(leg.stage) + "trainer.steps=" + std::to_string(leg.steps)));
        ASSERT_EQ(outcome.status, 0) << outcome.output;
        const Outcome verified = shell(levin() + " checkpoint verify " + (folder / "legs"));
        EXPECT_EQ(verified.status, 0) << verified.output;
    }
    const std::vector<double> whole = losses(folder / "whole"), legged = losses(folder / "legs");
    ASSERT_EQ(legged.size(), whole.size());
    for (size_t i = 0; i < whole.size(); ++i) EXPECT_NEAR(legged[i], whole[i], 1e-5 * whole[i]) << i;
}

TEST(Zero, StagesJoinTensorParallelism) {
    const TemporaryFolder folder;
    make_shard(folder);
    ASSERT_EQ(shell(train(folder, "alone", "trainer.steps=4 checkpoint.every=2")).status, 0);
    const std::vector<double> alone = losses(folder / "alone");
    for (const int stage : {1, 3}) {
        const std::string run = "tp" + std::to_string(stage);
        const std::string settings = zero(stage) + "parallel.tp=2 checkpoint.every=2 trainer.steps=";
        ASSERT_EQ(shell(mpirun(4) + train(folder, run, settings + "2")).status, 0);
        const Outcome outcome = shell(mpirun(4) + train(folder, run, settings + "3"));
        ASSERT_EQ(outcome.status, 0) << outcome.output;
        EXPECT_TRUE(outcome.says("resumed from")) << outcome.output;
        // What four ranks saved in shares of parts, one rank reads.
        const Outcome last = shell(train(folder, run, "trainer.steps=4 checkpoint.every=2"));
        ASSERT_EQ(last.status, 0) << last.output;
        const std::vector<double> values = losses(folder / run);
        ASSERT_EQ(values.size(), alone.size());
        for (size_t i = 0; i < alone.size(); ++i) EXPECT_NEAR(values[i], alone[i], 1e-5 * alone[i]) << i;
    }
}

}  // namespace
}  // namespace levin::testing
