// The pipeline's table by itself: every pass once and in a possible order, no more idle ticks and no more
// kept activations than 1F1B and its interleaved form need.
#include "parallel/pipeline/schedule.h"

#include <gtest/gtest.h>

#include <map>

namespace levin {
namespace {

TEST(PipelineSchedule, EveryPassHappensOnceAfterWhatItNeeds) {
    for (int64_t ranks = 1; ranks <= 6; ++ranks)
        for (int64_t v = 1; v <= (ranks > 1 ? 4 : 1); ++v)
            for (int64_t m = 1; m <= 13; ++m) {
                SCOPED_TRACE(testing::Message()
                             << ranks << " ranks x " << v << ", " << m << " micro-batches");
                const PipelineSchedule schedule(ranks, v, m);
                std::map<std::tuple<bool, int64_t, int64_t>, int64_t> when;
                for (int64_t tick = 0; tick < schedule.ticks(); ++tick)
                    for (int64_t rank = 0; rank < ranks; ++rank)
                        if (const auto& a = schedule.at(tick, rank)) {
                            EXPECT_EQ(a->stage % ranks, rank);
                            EXPECT_TRUE(
                                when.emplace(std::tuple(a->forward, a->stage, a->micro_batch), tick).second);
                        }
                ASSERT_EQ(static_cast<int64_t>(when.size()), 2 * m * schedule.stages());
                for (const auto& [pass, tick] : when) {
                    const auto [forward, stage, micro_batch] = pass;
                    const auto before = [&](bool f, int64_t s) {
                        EXPECT_LT(when.at({f, s, micro_batch}), tick);
                    };
                    if (forward && stage > 0) before(true, stage - 1);
                    if (!forward) before(true, stage);
                    if (!forward && stage + 1 < schedule.stages()) before(false, stage + 1);
                }
                if (m % ranks != 0 && v > 1) continue;
                // Nothing is lost but the filling and the emptying of the pipeline.
                EXPECT_EQ(schedule.ticks(), 2 * (m * v + ranks - 1)) << schedule.print();
                for (int64_t rank = 0; rank < ranks; ++rank) {
                    const int64_t after = ranks - 1 - rank;
                    EXPECT_LE(schedule.most_kept(rank), v == 1 ? after + 1 : 2 * after + (v - 1) * ranks + 1);
                }
            }
}

TEST(PipelineSchedule, PrintsItsTable) {
    EXPECT_EQ(PipelineSchedule(2, 1, 3).print(),
              "rank 0   F0 F1 .  B0 F2 B1 .  B2\n"
              "rank 1   .  F0 B0 F1 B1 F2 B2 .\n");
    const PipelineSchedule interleaved(2, 2, 2);
    EXPECT_EQ(interleaved.print(),
              "rank 0   F0.0 F1.0 F0.1 F1.1 .    B0.1 .    B1.1 B0.0 B1.0\n"
              "rank 1   .    F0.0 F1.0 F0.1 B0.1 F1.1 B1.1 B0.0 B1.0 .\n");
    EXPECT_EQ(interleaved.receiver({true, 1, 0}), 0);
    EXPECT_EQ(interleaved.receiver({true, 3, 0}), -1);
    EXPECT_EQ(interleaved.receiver({false, 2, 0}), 1);
    EXPECT_EQ(interleaved.receiver({false, 0, 0}), -1);
    EXPECT_DOUBLE_EQ(PipelineSchedule(4, 1, 8).idle(), 3.0 / 11);
    EXPECT_LT(PipelineSchedule(4, 2, 8).idle(), PipelineSchedule(4, 1, 8).idle());
}

}  // namespace
}  // namespace levin
