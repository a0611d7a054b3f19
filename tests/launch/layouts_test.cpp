// One run that changes its layout at every resume is the run of one rank; what cannot work is refused.
#include <cmath>

#include "tests/launch/program.h"

namespace levin::testing {
namespace {

double field(const std::string& row, const std::string& name) {
    const size_t at = row.find("\"" + name + "\":");
    return at == std::string::npos ? NAN : std::stod(row.substr(at + name.size() + 3));
}

TEST(Layouts, ARunGoesOnAtAnyOther) {
    const TemporaryFolder folder;
    const std::string validation =
        " data.validation=" + make_shard(folder) +
        " trainer.eval_batches=3 trainer.sequence_length=65 schedule.type=constant ";
    const auto run = [&](int ranks, const std::string& name, int steps, const std::string& settings) {
        const std::string command =
            train(folder, name, "trainer.steps=" + std::to_string(steps) + validation + settings);
        const Outcome outcome = shell(ranks > 1 ? mpirun(ranks) + command : command);
        EXPECT_EQ(outcome.status, 0) << settings << "\n" << outcome.output;
        return outcome;
    };
    run(1, "alone", 14, "trainer.eval_every=2");
    run(4, "changing", 4, "parallel.tp=2 parallel.cp=2 parallel.sequence_scatter=true");
    run(4, "changing", 8,
        "parallel.pp=2 parallel.virtual_stages=2 parallel.zero=1 trainer.micro_batch=1 "
        "trainer.recompute=full trainer.recompute_slice=32");
    run(2, "changing", 10, "parallel.cp=2 parallel.zero=3 trainer.recompute=full trainer.recompute_slice=16");
    const Outcome wide =
        run(4, "changing", 12, "parallel.tp=4 parallel.two_batch_overlap=on trainer.eval_every=4");
    EXPECT_TRUE(wide.says("resumed from " + (folder / "changing/checkpoints/step_00000010"))) << wide.output;
    run(1, "changing", 14, "trainer.recompute=full trainer.recompute_slice=32");
    const auto expected = lines(folder / "alone/metrics.jsonl"),
               rows = lines(folder / "changing/metrics.jsonl");
    ASSERT_EQ(rows.size(), 14u);
    for (size_t i = 0; i < rows.size(); ++i) {
        EXPECT_NEAR(field(rows[i], "loss") / field(expected[i], "loss"), 1, 1e-5) << i;
        EXPECT_NEAR(field(rows[i], "grad_norm") / field(expected[i], "grad_norm"), 1, 2e-4) << i;
        EXPECT_EQ(field(rows[i], "tokens"), field(expected[i], "tokens")) << i;
    }
    for (const size_t i : {3, 7, 9, 11, 13})  // each at another layout
        EXPECT_NEAR(field(rows[i], "validation_loss") / field(expected[i], "validation_loss"), 1, 1e-5) << i;
}

TEST(Layouts, WhatCannotWorkEndsWithStatus2AndTheNearestThatDoes) {
    const TemporaryFolder folder;
    make_shard(folder);
    const auto refused = [&](int ranks, const std::string& settings, const std::string& nearest) {
        const Outcome outcome = shell(mpirun(ranks) + train(folder, "run", "trainer.steps=1 " + settings));
        EXPECT_EQ(outcome.status, 2) << settings << "\n" << outcome.output;
        EXPECT_TRUE(outcome.says(nearest)) << settings << "\n" << outcome.output;
    };
    refused(2, "parallel.tp=4", "parallel.tp=2");
    refused(3, "parallel.tp=3", "parallel.tp=2 and 4");
    refused(2, "parallel.pp=2 parallel.virtual_stages=3", "parallel.pp=2 parallel.virtual_stages=2");
    refused(2, "trainer.global_batch=2", "trainer.global_batch=4");
    refused(2, "parallel.cp=2 trainer.sequence_length=1", "parallel.cp to 1");
    refused(2, "parallel.cp=2 parallel.sequence_scatter=true", "parallel.sequence_scatter=false");
    refused(2,
            "parallel.tp=2 parallel.sequence_scatter=true trainer.recompute=full trainer.recompute_slice=16",
            "parallel.sequence_scatter=false");
    refused(2, "parallel.tp=2 parallel.two_batch_overlap=on trainer.micro_batch=1",
            "parallel.two_batch_overlap=auto");
    EXPECT_FALSE(std::filesystem::exists(folder / "run/metrics.jsonl"));
}

TEST(Layouts, ParityIsShownAtAnyLayout) {
    const std::string parity = levin() + " parity " + source_folder() + "/tests/golden/";
    for (const auto& [ranks, command] :
         std::vector<std::pair<int, std::string>>{{2, "tnl-base --tp 2"},
                                                  {2, "tnl-layernorm-1elu-untied --tp 2 --sequence-scatter"},
                                                  {4, "tnl-base --cp 2 --pp 2 --dtype f64"},
                                                  {2, "tnl-trajectory --zero 2"}}) {
        const Outcome outcome = shell(mpirun(ranks) + parity + command);
        EXPECT_EQ(outcome.status, 0) << command << "\n" << outcome.output;
        EXPECT_TRUE(outcome.says("all hold")) << command << "\n" << outcome.output;
        EXPECT_EQ(outcome.says("left out"), command.find("--cp") != std::string::npos) << outcome.output;
    }
    EXPECT_EQ(shell(mpirun(2) + parity + "tnl-base --no-such-option 3").status, 2);
    const Outcome scattered = shell(parity + "tnl-base --sequence-scatter");
    EXPECT_EQ(scattered.status, 2) << scattered.output;
    EXPECT_TRUE(scattered.says("--tp 2")) << scattered.output;
}

}  // namespace
}  // namespace levin::testing
