// What the meter says of communication whose time is known: a rank that is late, work that hides it.
#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "parallel/communication_meter.h"
#include "parallel/world.h"

namespace levin {
namespace {

void pause(int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

class Meter : public testing::Test {
protected:
    CommunicationTime taken() {
        CommunicationTime sum;
        for (const auto& [name, time] : meter.take(DeviceType::cpu)) {
            EXPECT_EQ(name, world.all().name());
            sum.busy_ms += time.busy_ms;
            sum.exposed_ms += time.exposed_ms;
        }
        return sum;
    }

    World& world = World::current();
    CommunicationMeter meter;
    const Tensor tensor = Tensor::zeros({100000}, DType::f32);
};

TEST_F(Meter, ALateRankIsExposedTimeOfTheOthers) {
    if (world.size() == 1) return;
    world.all().barrier();
    taken();
    const bool late = world.rank() == world.size() - 1;
    if (late) pause(300);
    world.all().all_reduce(tensor);
    if (!late) {
        const CommunicationTime time = taken();
        EXPECT_GE(time.exposed_ms, 150);  // less than the delay: nobody leaves a barrier at the same time
        EXPECT_GE(time.busy_ms, 150);
    }
    world.all().barrier();
    taken();
    EXPECT_EQ(taken().exposed_ms, 0);  // counted once
}

TEST_F(Meter, WhatTheComputationHidesIsNotExposed) {
    if (world.size() == 1) return;
    world.all().barrier();
    taken();
    const Pending work = world.all().start_all_reduce(tensor);
    pause(200);  // the computation
    work->wait();
    const CommunicationTime time = taken();
    EXPECT_GE(time.busy_ms, 200);
    EXPECT_LT(time.exposed_ms, time.busy_ms - 190);
    EXPECT_GT(time.exposed_ms, 0);
}

TEST_F(Meter, OverlappingOperationsAreBusyOnce) {
    if (world.size() == 1) return;
    world.all().barrier();
    taken();
    const auto start = std::chrono::steady_clock::now();
    const Tensor other = Tensor::zeros({50000}, DType::f64);
    const Pending first = world.all().start_all_reduce(tensor), second = world.all().start_all_reduce(other);
    pause(100);
    first->wait();
    second->wait();
    const double busy = taken().busy_ms;
    const std::chrono::duration<double, std::milli> passed = std::chrono::steady_clock::now() - start;
    EXPECT_GE(busy, 100);
    EXPECT_LE(busy, passed.count());
}

TEST_F(Meter, ARankAloneWaitsForNobody) {
    if (world.size() > 1) return;
    world.all().all_reduce(tensor);
    world.all().barrier();
    EXPECT_TRUE(meter.take(DeviceType::cpu).empty());
}

TEST_F(Meter, LaterTimesAreAskedInTheirOrder) {
    bool first_known = false;
    meter.add_later("gpu", [&]() -> std::optional<CommunicationTime> {
        if (!first_known) return std::nullopt;
        return CommunicationTime{.busy_ms = 2, .exposed_ms = 0.5};
    });
    meter.add_later("gpu", [] { return std::optional(CommunicationTime{.busy_ms = 3, .exposed_ms = 0}); });
    EXPECT_EQ(meter.take(DeviceType::cuda)["gpu"].busy_ms, 0);
    first_known = true;
    const CommunicationTime time = meter.take(DeviceType::cuda)["gpu"];
    EXPECT_EQ(time.busy_ms, 5);
    EXPECT_EQ(time.exposed_ms, 0.5);
    EXPECT_EQ(meter.take(DeviceType::cuda)["gpu"].busy_ms, 0);
}

}  // namespace
}  // namespace levin
