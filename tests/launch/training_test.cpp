// Training as an operator meets it: interrupted, damaged, out of disk, started twice.
#include <gtest/gtest.h>

#include "tests/launch/program.h"

namespace levin::testing {
namespace {

// Waits for the 13th row, then sends SIGTERM to `pattern`'s processes; the status is that of the training.
std::string interrupted(const std::string& command, const std::string& run, const std::string& pattern) {
    return command + " & job=$!; for i in $(seq 600); do [ \"$(cat " + run +
           "/metrics.jsonl 2>/dev/null | wc -l)\" -ge 13 ] && break; sleep 0.05; done; " + pattern +
           "; wait $job";
}

// Slow enough (recomputation on one thread) that the signal arrives in time, whatever the machine.
const char* kThirtySteps = "trainer.steps=30 trainer.threads=1 trainer.sequence_length=1024";

void check_same(const TemporaryFolder& folder, const std::string& a, const std::string& b) {
    const auto rows = exact_metrics(folder / a);
    EXPECT_EQ(rows.size(), 30u);
    EXPECT_EQ(exact_metrics(folder / b), rows);
    EXPECT_EQ(weights(folder / b, "step_00000030"), weights(folder / a, "step_00000030"));
}

TEST(Training, AnInterruptedRunContinuesToTheBit) {
    const TemporaryFolder folder;
    make_shard(folder);
    ASSERT_EQ(shell(train(folder, "whole", kThirtySteps)).status, 0);
    const Outcome stopped =
        shell(interrupted(train(folder, "halves", kThirtySteps), folder / "halves", "kill -TERM $job"));
    ASSERT_EQ(stopped.status, 0) << stopped.output;
    ASSERT_TRUE(stopped.says("stopped at step")) << stopped.output;
    EXPECT_LT(lines(folder / "halves/metrics.jsonl").size(), 30u);
    const Outcome resumed = shell(train(folder, "halves", kThirtySteps));
    EXPECT_EQ(resumed.status, 0) << resumed.output;
    EXPECT_TRUE(resumed.says("resumed from")) << resumed.output;
    check_same(folder, "whole", "halves");

    const Outcome again = shell(train(folder, "halves", kThirtySteps));
    EXPECT_EQ(again.status, 0);
    EXPECT_TRUE(again.says("is finished")) << again.output;
}

// A signal that arrives in the middle of a matrix product must not disturb it (see trainer/stop_signal.h).
TEST(Training, ManySignalsWhileComputingDoNoHarm) {
    const TemporaryFolder folder;
    make_shard(folder);
    const Outcome stopped = shell(
        interrupted(train(folder, "halves", "trainer.steps=60 trainer.sequence_length=1024"),
                    folder / "halves", "for i in $(seq 100); do kill -TERM $job; kill -INT $job; done"));
    EXPECT_EQ(stopped.status, 0) << stopped.output;
    EXPECT_TRUE(stopped.says("stopped at step")) << stopped.output;
    // Elsewhere the signal ends the program as usual.
    const Outcome ended =
        shell(levin() + " bench gemm --tokens 8192 --hidden 1024 & sleep 0.5; kill -TERM $!; wait $!");
    EXPECT_EQ(ended.status, 128 + 15) << ended.output;
}

// A signal that is there before the program is: as early as one can come.
std::string told_at_once(const std::string& command, const std::string& condition = "true") {
    return "env --block-signal=USR1 bash -c '! " + condition + " || kill -USR1 $$; exec \"$@\"' bash " +
           command;
}

TEST(Training, ACtrlCThatEndsTheReaderTooSavesAndEndsWell) {
    const TemporaryFolder folder;
    make_shard(folder);
    folder.write(
        "script",
        ctrl_c(folder, train(folder, "run", "trainer.steps=100000 checkpoint.every=10 trainer.log_every=1")));
    const Outcome outcome = shell("bash " + (folder / "script"));
    EXPECT_EQ(read_text(folder / "status"), "0\n") << outcome.output;
    // A new row for each step until then, and the last of them saved.
    const Outcome again = shell(train(folder, "run", "trainer.steps=1"));
    EXPECT_TRUE(
        again.says(std::to_string(lines(folder / "run/metrics.jsonl").size()) + " of 1 steps are done"))
        << again.output;
}

TEST(Training, WhatIsPrintedStaysOutOfFilesWhereOutputIsClosed) {
    const TemporaryFolder folder;
    make_shard(folder);
    ASSERT_EQ(shell(train(folder, "run", "trainer.steps=5") + " <&- >&- 2>&-").status, 0);
    const auto rows = lines(folder / "run/metrics.jsonl");
    EXPECT_EQ(rows.size(), 5u);
    for (const std::string& row : rows) EXPECT_EQ(row.rfind("{\"step\":", 0), 0u) << row;
    const Outcome full = shell(levin() + " config docs >/dev/full");
    EXPECT_EQ(full.status, 1);
    EXPECT_TRUE(full.says("standard output cannot be written")) << full.output;
    EXPECT_EQ(shell(train(folder, "full", "trainer.steps=2") + " >/dev/full").status, 0);
}

TEST(Training, AFolderHasOneProcessAtATime) {
    const TemporaryFolder folder;
    make_shard(folder);
    const std::string first = train(folder, "run", "trainer.steps=100000 checkpoint.every=10");
    const Outcome outcome =
        shell(first + " >/dev/null & job=$!; for i in $(seq 600); do test -d " +
              (folder / "run/checkpoints/step_00000010") + " && break; sleep 0.05; done; " + first +
              "; echo second $?; kill -9 $job; wait $job; " + train(folder, "run", "trainer.steps=1") +
              "; echo third $?");
    EXPECT_TRUE(outcome.says("another process trains in")) << outcome.output;
    EXPECT_TRUE(outcome.says("second 2")) << outcome.output;
    EXPECT_TRUE(outcome.says("third 0")) << outcome.output;  // a killed process leaves no lock
}

TEST(Training, ASignalDuringTheStartStopsBeforeTheFirstStep) {
    const TemporaryFolder folder;
    make_shard(folder);
    const std::string settings = "trainer.steps=3 checkpoint.every=2";
    // One process, and the last of two ranks.
    for (const std::string& command :
         {told_at_once(train(folder, "run", settings)),
          mpirun(2) + told_at_once(train(folder, "run", settings), "[ $OMPI_COMM_WORLD_RANK = 1 ]")}) {
        const Outcome stopped = shell(command);
        EXPECT_EQ(stopped.status, 0) << stopped.output;
        EXPECT_TRUE(stopped.says("stopped before the first step")) << stopped.output;
        EXPECT_TRUE(lines(folder / "run/metrics.jsonl").empty());
    }
    // Started again, it trains; told so once more, it keeps what is there.
    ASSERT_EQ(shell(train(folder, "run", settings)).status, 0);
    const auto rows = exact_metrics(folder / "run");
    std::filesystem::remove_all(folder / "run/checkpoints/step_00000003");
    const Outcome between = shell(told_at_once(train(folder, "run", settings)));
    EXPECT_EQ(between.status, 0) << between.output;
    EXPECT_TRUE(between.says("stopped at step 2, saved")) << between.output;
    ASSERT_EQ(shell(train(folder, "run", settings)).status, 0);
    EXPECT_EQ(exact_metrics(folder / "run"), rows);
}

TEST(Training, TwoRanksContinueToTheBitToo) {
    const TemporaryFolder folder;
    make_shard(folder);
    ASSERT_EQ(shell(mpirun(2) + train(folder, "whole", kThirtySteps)).status, 0);
    const Outcome stopped =
        shell(interrupted(mpirun(2) + train(folder, "halves", kThirtySteps), folder / "halves",
                          "pkill -TERM -P $(pgrep -P $job mpirun || echo $job) levin"));
    ASSERT_EQ(stopped.status, 0) << stopped.output;
    ASSERT_TRUE(stopped.says("stopped at step")) << stopped.output;
    ASSERT_EQ(shell(mpirun(2) + train(folder, "halves", kThirtySteps)).status, 0);
    check_same(folder, "whole", "halves");
}

TEST(Training, TwoRanksComputeWhatOneDoes) {
    const TemporaryFolder folder;
    make_shard(folder);
    const std::string settings =
        "trainer.steps=10 trainer.precision=f64 trainer.micro_batch=1 checkpoint.every=0";
    ASSERT_EQ(shell(train(folder, "one", settings)).status, 0);
    ASSERT_EQ(shell(mpirun(2) + train(folder, "two", settings)).status, 0);
    const auto one = exact_metrics(folder / "one"), two = exact_metrics(folder / "two");
    ASSERT_EQ(one.size(), two.size());
    const auto loss = [](const std::string& row) { return std::stod(row.substr(row.find("\"loss\":") + 7)); };
    for (size_t i = 0; i < one.size(); ++i) EXPECT_NEAR(loss(one[i]) / loss(two[i]), 1, 1e-10);
}

TEST(Training, AFolderBelongsToItsRun) {
    const TemporaryFolder folder;
    make_shard(folder);
    make_shard(folder, "other");
    folder.write("other.txt", "something else entirely, and long enough for a sequence of tokens. " +
                                  std::string(500, 'x'));
    shell(levin() + " data build --overwrite --input " + (folder / "other.txt") +
          " --tokenizer byte --output " + (folder / "other"));
    ASSERT_EQ(shell(train(folder, "run", "trainer.steps=2")).status, 0);
    for (const char* change : {"trainer.seed=7", "model.num_heads=8", "trainer.global_batch=8"}) {
        const Outcome refused = shell(train(folder, "run", std::string("trainer.steps=4 ") + change));
        EXPECT_EQ(refused.status, 2) << change << refused.output;
        EXPECT_TRUE(refused.says("holds another run")) << refused.output;
    }
    const Outcome data = shell(train(folder, "run", "trainer.steps=4 data.train=" + (folder / "other")));
    EXPECT_EQ(data.status, 2) << data.output;
    EXPECT_TRUE(data.says("another data")) << data.output;
    // Starting again would leave the old checkpoints the newest ones.
    const Outcome none = shell(train(folder, "run", "trainer.steps=4 checkpoint.resume=none"));
    EXPECT_EQ(none.status, 2) << none.output;
    EXPECT_TRUE(none.says("choose another run.folder")) << none.output;
    const Outcome borrowed =
        shell(train(folder, "elsewhere",
                    "trainer.steps=4 trainer.seed=7 checkpoint.folder=" + (folder / "run/checkpoints")));
    EXPECT_EQ(borrowed.status, 2) << borrowed.output;
    EXPECT_TRUE(borrowed.says("choose another checkpoint.folder")) << borrowed.output;
    // What may change: steps, checkpointing, threads, micro-batch.
    const Outcome more = shell(train(
        folder, "run",
        "trainer.steps=4 trainer.micro_batch=4 trainer.threads=1 checkpoint.every=1 log.tensorboard=true"));
    EXPECT_EQ(more.status, 0) << more.output;
    EXPECT_EQ(lines(folder / "run/metrics.jsonl").size(), 4u);
}

// The masters of bf16 weights are stored as f32 and split again.
TEST(Training, ABf16RunContinuesToTheBit) {
    const TemporaryFolder folder;
    make_shard(folder);
    for (const std::string moments : {"f32", "bf16"}) {
        const std::string run = "run_" + moments;
        const std::string settings =
            "trainer.steps=6 checkpoint.every=3 trainer.precision=bf16 optimizer.moment_dtype=" + moments;
        ASSERT_EQ(shell(train(folder, run, settings)).status, 0);
        const std::string whole = weights(folder / run, "step_00000006");
        const auto rows = exact_metrics(folder / run);
        std::filesystem::remove_all(folder / run + "/checkpoints/step_00000006");
        const Outcome resumed = shell(train(folder, run, settings));
        EXPECT_EQ(resumed.status, 0) << resumed.output;
        EXPECT_TRUE(resumed.says("resumed from")) << resumed.output;
        EXPECT_FALSE(resumed.says("moment_dtype")) << resumed.output;
        EXPECT_EQ(weights(folder / run, "step_00000006"), whole);
        EXPECT_EQ(exact_metrics(folder / run), rows);
    }
    EXPECT_NE(exact_metrics(folder / "run_bf16"), exact_metrics(folder / "run_f32"));
}

// optimizer.moment_dtype may change at any checkpoint, which is told in one line; the losses hardly change.
TEST(Training, MomentsChangeTheirTypeBetweenSteps) {
    const TemporaryFolder folder;
    make_shard(folder);
    ASSERT_EQ(shell(train(folder, "whole", "trainer.steps=9")).status, 0);
    ASSERT_EQ(shell(train(folder, "run", "trainer.steps=3")).status, 0);
    const auto bytes = [&](const char* step) {
        return std::filesystem::file_size(folder / "run" + "/checkpoints/" + step + "/adamw.m.safetensors");
    };
    const Outcome narrow = shell(train(folder, "run", "trainer.steps=6 optimizer.moment_dtype=bf16"));
    ASSERT_EQ(narrow.status, 0) << narrow.output;
    EXPECT_TRUE(narrow.says("are f32 and are rounded to bf16 from here on (optimizer.moment_dtype)"))
        << narrow.output;
    EXPECT_LT(static_cast<double>(bytes("step_00000006")),
              0.52 * static_cast<double>(bytes("step_00000003")));
    const Outcome wide = shell(train(folder, "run", "trainer.steps=9"));
    ASSERT_EQ(wide.status, 0) << wide.output;
    EXPECT_TRUE(wide.says("are bf16 and are kept in f32 from here on (optimizer.moment_dtype)"))
        << wide.output;
    const auto loss = [](const std::string& row) { return std::stod(row.substr(row.find("\"loss\":") + 7)); };
    const auto whole = exact_metrics(folder / "whole"), changed = exact_metrics(folder / "run");
    ASSERT_EQ(changed.size(), whole.size());
    for (size_t i = 0; i < whole.size(); ++i) EXPECT_NEAR(loss(changed[i]) / loss(whole[i]), 1, 1e-3) << i;
    const Outcome refused = shell(train(folder, "f64", "trainer.precision=f64 optimizer.moment_dtype=bf16"));
    EXPECT_EQ(refused.status, 2);
    EXPECT_TRUE(refused.says("leave moment_dtype at f32")) << refused.output;
}

// trainer.step_graph: on a GPU the same run to the bit, also resumed; on a CPU there is nothing to record.
TEST(Training, PassesLaunchedAsAWholeAreTheSameRun) {
    const TemporaryFolder folder;
    make_shard(folder);
    if (!on_gpu()) {
        const Outcome refused = shell(train(folder, "run", "trainer.step_graph=on"));
        EXPECT_EQ(refused.status, 2) << refused.output;
        EXPECT_TRUE(refused.says("trainer.step_graph is on, but a CPU launches nothing")) << refused.output;
        return;
    }
    const std::string common =
        "trainer.steps=20 trainer.global_batch=6 trainer.eval_every=7 trainer.eval_batches=2 "
        "checkpoint.every=10 data.validation=" +
        (folder / "text");
    for (const std::string precision : {" trainer.precision=f32", " trainer.precision=bf16"}) {
        SCOPED_TRACE(precision);
        const std::string a = "off" + precision.substr(19), b = "on" + precision.substr(19);
        const Outcome off = shell(train(folder, a, common + precision + " trainer.step_graph=off"));
        ASSERT_EQ(off.status, 0) << off.output;
        EXPECT_FALSE(off.says("CUDA graph")) << off.output;
        const Outcome on = shell(train(folder, b, common + precision + " trainer.step_graph=on"));
        ASSERT_EQ(on.status, 0) << on.output;
        EXPECT_TRUE(on.says("passes are launched as CUDA graphs")) << on.output;
        EXPECT_EQ(exact_metrics(folder / b), exact_metrics(folder / a));
        EXPECT_EQ(weights(folder / b, "step_00000020"), weights(folder / a, "step_00000020"));
        std::filesystem::remove_all(folder / (b + "/checkpoints/step_00000020"));
        const Outcome resumed = shell(train(folder, b, common + precision + " trainer.step_graph=on"));
        EXPECT_TRUE(resumed.says("resumed from")) << resumed.output;
        EXPECT_EQ(exact_metrics(folder / b), exact_metrics(folder / a));
        EXPECT_EQ(weights(folder / b, "step_00000020"), weights(folder / a, "step_00000020"));
    }
    // Documents differ from pass to pass: refused, not run slowly.
    const Outcome packed = shell(train(folder, "packed", "trainer.step_graph=on data.packed_documents=true"));
    EXPECT_EQ(packed.status, 2) << packed.output;
    EXPECT_TRUE(packed.says("data.packed_documents=false")) << packed.output;
}

TEST(Training, ADamagedCheckpointIsSkippedForTheOlderOne) {
    const TemporaryFolder folder;
    make_shard(folder);
    ASSERT_EQ(shell(train(folder, "run", "trainer.steps=6 checkpoint.every=3")).status, 0);
    const std::string whole = weights(folder / "run", "step_00000006");
    // One flipped byte in the middle of the newest weights.
    const std::string file = folder / "run/checkpoints/step_00000006/model.safetensors";
    std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
    stream.seekg(200000);
    const int byte = stream.get();
    stream.seekp(200000);
    stream.put(static_cast<char>(byte ^ 1));
    stream.close();
    const Outcome listed = shell(levin() + " checkpoint list " + (folder / "run"));
    EXPECT_TRUE(listed.says("step_00000006")) << listed.output;
    const Outcome resumed = shell(train(folder, "run", "trainer.steps=6 checkpoint.every=3"));
    EXPECT_EQ(resumed.status, 0) << resumed.output;
    EXPECT_TRUE(resumed.says("step_00000006")) << resumed.output;  // named, with the reason
    EXPECT_TRUE(resumed.says("resumed from " + (folder / "run/checkpoints/step_00000003"))) << resumed.output;
    EXPECT_EQ(weights(folder / "run", "step_00000006"), whole);
    EXPECT_EQ(lines(folder / "run/metrics.jsonl").size(), 6u);
}

TEST(Training, ATornRowIsMended) {
    const TemporaryFolder folder;
    make_shard(folder);
    ASSERT_EQ(shell(train(folder, "run", "trainer.steps=3")).status, 0);
    const auto before = exact_metrics(folder / "run");
    std::ofstream(folder / "run/metrics.jsonl", std::ios::app) << "{\"step\":4,\"tok";
    ASSERT_EQ(shell(train(folder, "run", "trainer.steps=5")).status, 0);
    const auto after = exact_metrics(folder / "run");
    ASSERT_EQ(after.size(), 5u);
    for (size_t i = 0; i < 3; ++i) EXPECT_EQ(after[i], before[i]);
}

TEST(Training, AFullDiskWhileSavingLosesNothing) {
    const TemporaryFolder folder;
    make_shard(folder);
    ASSERT_EQ(shell(train(folder, "run", "trainer.steps=2 checkpoint.every=2")).status, 0);
    // No file may grow beyond 400 blocks of 1 KiB: the weights do not fit, the metrics do.
    const Outcome full =
        shell("ulimit -f 400; " + train(folder, "run", "trainer.steps=6 checkpoint.every=2"));
    EXPECT_NE(full.status, 0) << full.output;  // the last save must succeed
    EXPECT_TRUE(full.says("step 4 was not saved")) << full.output;
    EXPECT_TRUE(full.says("training goes on")) << full.output;
    EXPECT_EQ(lines(folder / "run/metrics.jsonl").size(), 6u);
    const Outcome after = shell(train(folder, "run", "trainer.steps=6 checkpoint.every=2"));
    EXPECT_EQ(after.status, 0) << after.output;
    EXPECT_TRUE(after.says("resumed from " + (folder / "run/checkpoints/step_00000002"))) << after.output;
}

TEST(Training, BadNumbersEndWithStatus3) {
    const TemporaryFolder folder;
    make_shard(folder);
    const Outcome exploded = shell(train(
        folder, "run",
        "trainer.steps=200 optimizer.learning_rate=1e30 schedule.warmup_steps=1 trainer.clip_grad_norm=0"));
    EXPECT_EQ(exploded.status, 3) << exploded.output;
    EXPECT_TRUE(exploded.says("no longer finite")) << exploded.output;
    EXPECT_FALSE(exploded.says("pad tokens")) << exploded.output;
    // Spaces as pad tokens: 24 norms of zero rows, each of which attends.
    const Outcome padded = shell(train(folder, "padded",
                                       "trainer.steps=2 model.num_layers=24 model.hidden_size=128 "
                                       "model.pad_token_id=32 model.qk_activation=1+elu"));
    EXPECT_EQ(padded.status, 3) << padded.output;
    EXPECT_TRUE(padded.says("take pad tokens (id 32) out of the data")) << padded.output;
}

TEST(Training, WritesAReportAndItsTokenizer) {
    const TemporaryFolder folder;
    make_shard(folder);
    const Outcome run = shell(train(
        folder, "run",
        "trainer.steps=4 schedule.warmup_steps=100 log.report=true log.tensorboard=true data.validation=" +
            (folder / "text")));
    ASSERT_EQ(run.status, 0) << run.output;  // a warm-up longer than the run is allowed
    EXPECT_TRUE(run.says("validation loss")) << run.output;
    const std::string report = read_text(folder / "run/report.html");
    EXPECT_NE(report.find("</html>"), std::string::npos);
    EXPECT_EQ(report.find("http://"), report.find("http://www.w3.org"));  // nothing loaded from elsewhere
    EXPECT_TRUE(std::filesystem::exists(folder / "run/tokenizer/tokenizer.json"));
    EXPECT_TRUE(std::filesystem::exists(folder / "run/config.yaml"));
    bool events = false;
    for (const auto& entry : std::filesystem::directory_iterator(folder / "run"))
        events = events || entry.path().filename().string().starts_with("events.out.tfevents");
    EXPECT_TRUE(events);
}

TEST(Training, PackedDocumentsRecomputationAndBf16Train) {
    const TemporaryFolder folder;
    make_shard(folder);
    for (const char* settings :
         {"data.packed_documents=true", "trainer.recompute=full", "trainer.recompute=selective",
          "trainer.precision=bf16", "trainer.z_loss=1e-4", "schedule.type=wsd"}) {
        const Outcome run =
            shell(train(folder, std::string("run") + settings, std::string("trainer.steps=15 ") + settings));
        ASSERT_EQ(run.status, 0) << settings << run.output;
        const auto rows = exact_metrics(folder / (std::string("run") + settings));
        const auto loss = [](const std::string& row) {
            return std::stod(row.substr(row.find("\"loss\":") + 7));
        };
        EXPECT_LT(loss(rows.back()), loss(rows.front()) - 0.5) << settings;
    }
}

// Sequences of 64 in pieces of 20, and packed documents as they come.
TEST(Training, SlicesTrainLikeOnePass) {
    const TemporaryFolder folder;
    const std::string validation = " data.validation=" + make_shard(folder) + " trainer.eval_batches=2";
    for (const char* packed : {"false", "true"}) {
        const std::string settings =
            std::string("trainer.steps=10 trainer.precision=f64 data.packed_documents=") + packed +
            validation;
        const std::string name = std::string("packed-") + packed;
        ASSERT_EQ(shell(train(folder, name, settings)).status, 0);
        const Outcome sliced = shell(
            train(folder, name + "-slices", settings + " trainer.recompute=full trainer.recompute_slice=20"));
        ASSERT_EQ(sliced.status, 0) << sliced.output;
        const auto one = exact_metrics(folder / name), slices = exact_metrics(folder / (name + "-slices"));
        ASSERT_EQ(one.size(), slices.size());
        for (const char* field : {"loss", "grad_norm"})
            for (size_t i = 0; i < one.size(); ++i) {
                const auto number = [&](const std::string& row) {
                    const std::string key = std::string("\"") + field + "\":";
                    return std::stod(row.substr(row.find(key) + key.size()));
                };
                EXPECT_NEAR(number(one[i]) / number(slices[i]), 1, 1e-10) << field << " " << i;
            }
    }
}

}  // namespace
}  // namespace levin::testing
