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
    // In bf16 with moments in bf16, which are rounded at random but everywhere alike.
    for (const std::string precision : {"f32", "bf16"}) {
        std::vector<std::string> expected;
        // Stage 3 that keeps what it gathers is stage 2.
        const std::string kept = zero(3) + "parallel.reshard_after_forward=false ";
        for (const int stage : {0, 1, 2, 3, 4}) {
            const std::string run = precision + std::to_string(stage);
            // Buckets of one MiB are many; two micro-batches an update; five batches of validation on two
            // ranks.
            const Outcome outcome =
                shell(mpirun(2) + train(folder, run,
                                        (stage < 4 ? zero(stage) : kept) +
                                            "trainer.steps=5 trainer.global_batch=8 parallel.bucket_mib=1 "
                                            "trainer.eval_every=2 trainer.eval_batches=1 data.validation=" +
                                            (folder / "text") + " trainer.precision=" + precision +
                                            " optimizer.moment_dtype=" + precision));
            ASSERT_EQ(outcome.status, 0) << outcome.output;
            const std::vector<std::string> rows = exact_metrics(folder / run);
            ASSERT_EQ(rows.size(), 5u);
            if (stage == 0) expected = rows;
            if (stage != 3) {
                EXPECT_EQ(rows, expected) << precision << " stage " << stage;
                continue;
            }
            // Buckets of one layer each: the gradient norm is summed in another order, in float64.
            const std::vector<double> values = losses(folder / run),
                                      first = losses(folder / (precision + "0"));
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

TEST(Zero, GradientsInBf16AndTheirTimeInTheRow) {
    const TemporaryFolder folder;
    make_shard(folder);
    const auto row_has = [&](const std::string& run, const char* field) {
        return lines(folder / (run + "/metrics.jsonl")).back().find(field) != std::string::npos;
    };
    ASSERT_EQ(shell(mpirun(2) + train(folder, "f32", "trainer.steps=8")).status, 0);
    for (const char* field : {"\"comm_ms\":", "\"exposed_comm_ms\":", "\"exposed_dp_ms\":"})
        EXPECT_TRUE(row_has("f32", field)) << field;
    EXPECT_FALSE(row_has("f32", "exposed_tp_ms"));
    const std::vector<double> exact = losses(folder / "f32");
    for (const int stage : {0, 2}) {
        const std::string run = "bf16" + std::to_string(stage);
        const Outcome outcome = shell(
            mpirun(2) +
            train(folder, run,
                  zero(stage) + "trainer.steps=8 parallel.gradient_dtype=bf16 log.communication=false"));
        ASSERT_EQ(outcome.status, 0) << outcome.output;
        EXPECT_FALSE(row_has(run, "comm_ms"));
        const std::vector<double> rounded = losses(folder / run);
        EXPECT_NE(rounded, exact);
        for (size_t i = 0; i < exact.size(); ++i) EXPECT_NEAR(rounded[i], exact[i], 1e-3 * exact[i]) << i;
    }
    EXPECT_EQ(exact_metrics(folder / "bf160"), exact_metrics(folder / "bf162"));
    ASSERT_EQ(shell(train(folder, "alone", "trainer.steps=1")).status, 0);
    EXPECT_FALSE(row_has("alone", "comm_ms"));
    const Outcome refused =
        shell(mpirun(2) + train(folder, "f64", "trainer.precision=f64 parallel.gradient_dtype=bf16"));
    EXPECT_EQ(refused.status, 2);
    EXPECT_TRUE(refused.says("leave gradient_dtype at f32")) << refused.output;
}

// A bf16 model with one micro-batch an update forms its gradients as bf16, but that of a tied embedding.
// Beside the same updates on one rank; whatever the stage, the same run; resumed, the same run.
TEST(Zero, GradientsFormedAsBf16) {
    const TemporaryFolder folder;
    make_shard(folder);
    for (const bool tied : {false, true}) {
        const std::string settings = std::string("trainer.precision=bf16 checkpoint.every=4 ") +
                                     "model.tie_embeddings=" + (tied ? "true" : "false") + " ";
        const std::string alone = tied ? "alone_tied" : "alone";
        ASSERT_EQ(shell(train(folder, alone, settings + "trainer.steps=8")).status, 0);
        const std::vector<double> exact = losses(folder / alone);
        ASSERT_EQ(exact.size(), 8u);
        std::vector<std::string> expected;
        for (const int stage : tied ? std::vector<int>{0, 2} : std::vector<int>{0, 1, 2, 3}) {
            const std::string run = std::to_string(stage) + (tied ? "tied" : "");
            const std::string command =
                settings + zero(stage) + "parallel.gradient_dtype=bf16 trainer.steps=";
            if (stage == 2) {
                ASSERT_EQ(shell(mpirun(2) + train(folder, run, command + "4")).status, 0);
            }
            const Outcome outcome = shell(mpirun(2) + train(folder, run, command + "8"));
            ASSERT_EQ(outcome.status, 0) << outcome.output;
            EXPECT_EQ(outcome.says("resumed from"), stage == 2) << outcome.output;
            const std::vector<std::string> rows = exact_metrics(folder / run);
            if (stage == 0) expected = rows;
            if (stage != 3) {
                EXPECT_EQ(rows, expected) << run;
            }
            const std::vector<double> values = losses(folder / run);
            ASSERT_EQ(values.size(), exact.size());
            for (size_t i = 0; i < exact.size(); ++i)
                EXPECT_NEAR(values[i], exact[i], 1e-3 * exact[i]) << run << " step " << i + 1;
        }
    }
    // With tensor parallelism, and a loss in chunks, which are added up in f32 first.
    ASSERT_EQ(shell(mpirun(4) + train(folder, "tp",
                                      "trainer.precision=bf16 model.tie_embeddings=false trainer.steps=8 "
                                      "trainer.loss_chunk_tokens=32 parallel.tp=2 "
                                      "parallel.gradient_dtype=bf16"))
                  .status,
              0);
    const std::vector<double> parts = losses(folder / "tp"), whole = losses(folder / "alone");
    ASSERT_EQ(parts.size(), whole.size());
    for (size_t i = 0; i < whole.size(); ++i) EXPECT_NEAR(parts[i], whole[i], 1e-3 * whole[i]) << i;
    // A rank alone rounds as well, where it has one micro-batch; nothing changes where it adds several up.
    const auto row = [&](const std::string& run, const std::string& settings) {
        const Outcome outcome =
            shell(train(folder, run, "trainer.precision=bf16 trainer.steps=4 " + settings));
        EXPECT_EQ(outcome.status, 0) << outcome.output;
        return exact_metrics(folder / run).back();
    };
    const std::string f32 = row("f32", "trainer.global_batch=2");
    const std::string bf16 = row("bf16", "trainer.global_batch=2 parallel.gradient_dtype=bf16");
    EXPECT_NE(bf16, f32);
    const double exact = losses(folder / "f32").back();
    EXPECT_NEAR(losses(folder / "bf16").back(), exact, 1e-3 * exact);
    EXPECT_EQ(row("several_f32", ""), row("several_bf16", "parallel.gradient_dtype=bf16"));
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
