#include "trainer/schedule.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace levin {
namespace {

constexpr OptimizerConfig rates() {
    OptimizerConfig optimizer;
    optimizer.learning_rate = 3e-3;
    optimizer.min_learning_rate = 3e-4;
    return optimizer;
}

// The learning rates of the reference trajectory (float64): 8 steps of warm-up, 40 in all, 3e-3 to 3e-4.
TEST(Schedule, CosineMatchesTheReferenceToTheBit) {
    const double expected[] = {0.000375,
                               0.00075,
                               0.0011250000000000001,
                               0.0015,
                               0.001875,
                               0.0022500000000000003,
                               0.002625,
                               0.003,
                               0.003,
                               0.0029934993810074658,
                               0.002974060128544361,
                               0.002941869453238482,
                               0.0028972373688902374,
                               0.002840593706870279,
                               0.002772483976608436,
                               0.0026935641120396947,
                               0.002604594154601839,
                               0.0025064309336209215,
                               0.002400019814576463,
                               0.002286385594715097,
                               0.0021666226336928716,
                               0.0020418843142935243,
                               0.0019133719347217734,
                               0.0017823231394449072,
                               0.00165,
                               0.001517676860555093,
                               0.0013866280652782268,
                               0.0012581156857064762,
                               0.0011333773663071288,
                               0.0010136144052849032,
                               0.0008999801854235373,
                               0.0007935690663790787,
                               0.0006954058453981609,
                               0.0006064358879603051,
                               0.0005275160233915638,
                               0.0004594062931297208,
                               0.0004027626311097629,
                               0.0003581305467615181,
                               0.0003259398714556389,
                               0.0003065006189925343};
    ScheduleConfig schedule;
    schedule.warmup_steps = 8;
    for (int step = 0; step < 40; ++step)
        EXPECT_NEAR(learning_rate_at(rates(), schedule, 40, step), expected[step], 1e-18) << step;
}

TEST(Schedule, LinearFallsEvenly) {
    ScheduleConfig schedule{.type = ScheduleType::linear, .warmup_steps = 10, .decay_steps = 0};
    EXPECT_DOUBLE_EQ(learning_rate_at(rates(), schedule, 110, 9), 3e-3);
    EXPECT_DOUBLE_EQ(learning_rate_at(rates(), schedule, 110, 10), 3e-3);
    EXPECT_DOUBLE_EQ(learning_rate_at(rates(), schedule, 110, 60), 1.65e-3);
    EXPECT_DOUBLE_EQ(learning_rate_at(rates(), schedule, 110, 110), 3e-4);
}

TEST(Schedule, ConstantStaysAfterTheWarmUp) {
    ScheduleConfig schedule{.type = ScheduleType::constant, .warmup_steps = 4, .decay_steps = 0};
    EXPECT_DOUBLE_EQ(learning_rate_at(rates(), schedule, 20, 0), 0.75e-3);
    for (int step = 4; step < 25; ++step) EXPECT_EQ(learning_rate_at(rates(), schedule, 20, step), 3e-3);
}

TEST(Schedule, WarmUpStableDecay) {
    ScheduleConfig schedule{.type = ScheduleType::wsd, .warmup_steps = 5, .decay_steps = 20};
    for (int step = 5; step < 80; ++step) EXPECT_EQ(learning_rate_at(rates(), schedule, 100, step), 3e-3);
    EXPECT_DOUBLE_EQ(learning_rate_at(rates(), schedule, 100, 89), 1.65e-3);
    EXPECT_DOUBLE_EQ(learning_rate_at(rates(), schedule, 100, 99), 3e-4);
    schedule.decay_steps = 0;  // a tenth of the run
    EXPECT_EQ(learning_rate_at(rates(), schedule, 100, 89), 3e-3);
    EXPECT_LT(learning_rate_at(rates(), schedule, 100, 90), 3e-3);
    schedule.decay_steps = 1000;  // the decay waits for the warm-up
    EXPECT_DOUBLE_EQ(learning_rate_at(rates(), schedule, 100, 4), 3e-3);
    EXPECT_LT(learning_rate_at(rates(), schedule, 100, 5), 3e-3);
}

TEST(Schedule, WarmUpLongerThanTheRun) {
    ScheduleConfig schedule;
    schedule.warmup_steps = 100;
    for (const ScheduleType type :
         {ScheduleType::cosine, ScheduleType::linear, ScheduleType::constant, ScheduleType::wsd}) {
        schedule.type = type;
        for (int step = 0; step < 10; ++step)
            EXPECT_DOUBLE_EQ(learning_rate_at(rates(), schedule, 10, step), 3e-3 * (step + 1) / 100);
    }
}

TEST(Schedule, NoWarmUpAndEveryRateWithinTheBounds) {
    for (const ScheduleType type :
         {ScheduleType::cosine, ScheduleType::linear, ScheduleType::constant, ScheduleType::wsd})
        for (int64_t warmup : {0, 1, 7}) {
            ScheduleConfig schedule{.type = type, .warmup_steps = warmup, .decay_steps = 0};
            double previous = 1;
            for (int64_t step = warmup; step < 60; ++step) {
                const double rate = learning_rate_at(rates(), schedule, 50, step);
                EXPECT_LE(rate, previous);
                EXPECT_GE(rate, 3e-4 * (1 - 1e-12));
                EXPECT_LE(rate, 3e-3);
                previous = rate;
            }
        }
}

}  // namespace
}  // namespace levin
