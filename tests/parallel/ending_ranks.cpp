// A small program for failure_test: its ranks end in the way the first argument says.
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <thread>

#include "parallel/agreement.h"
#include "parallel/watchdog/activity.h"
#include "parallel/world.h"

using namespace levin;

namespace {

// The last rank fails while the others wait for it.
int one_rank_fails(World& world, const std::function<int()>& failure) {
    if (world.rank() == world.size() - 1) return failure();
    for (;;) world.all().barrier();
}

int end_as_told(World& world, const std::string& how) {
    const Place place("the end it was told");
    if (how == "well") {
        const double ranks = sum_over(world.all(), 1);
        if (world.is_root())
            std::printf("%d ranks, MPI %s\n", static_cast<int>(ranks), world.uses_mpi() ? "yes" : "no");
        return 0;
    }
    if (how == "all-input") fail(Fault::input, "config", "the same mistake on every rank");
    if (how == "input")
        return one_rank_fails(world, []() -> int { fail(Fault::input, "data", "shard 7 is torn"); });
    if (how == "numbers")
        return one_rank_fails(world, []() -> int { fail(Fault::numbers, "loss", "is nan"); });
    if (how == "communication")
        return one_rank_fails(world, []() -> int { fail(Fault::communication, "test", "lost"); });
    if (how == "exception")
        return one_rank_fails(world, []() -> int { throw std::out_of_range("index 5 of 3"); });
    if (how == "status") return one_rank_fails(world, [] { return 3; });
    // Long enough that the others are told where it stands.
    const auto waiting = [](const char* for_what) {
        const Place place(for_what);
        std::this_thread::sleep_for(std::chrono::milliseconds(1200));
    };
    if (how == "killed" || how == "stopped")
        return one_rank_fails(world, [&] {
            waiting("waiting to be killed");
            return std::raise(how == "killed" ? SIGKILL : SIGSTOP);
        });
    // As GPUs do that share memory with the one of a killed rank: a call of rank 1 (or of all others) fails
    // first.
    if (how == "killed-and-felt" || how == "killed-and-accused") {
        const Fault fault = how == "killed-and-felt" ? Fault::internal : Fault::communication;
        if (world.rank() == 1) fail(fault, "test", "a call that the lost rank had to do with");
        return one_rank_fails(world, [&] {
            std::this_thread::sleep_for(std::chrono::milliseconds(700));
            return std::raise(SIGKILL);
        });
    }
    // The other ranks fail as well, of what the last one did, each some time later.
    if (how == "internal-and-felt" || how == "internal-and-accused") {
        const Fault fault = how == "internal-and-felt" ? Fault::internal : Fault::communication;
        const int last = world.size() - 1;
        const Tensor word = Tensor::zeros({1}, DType::f32);
        if (world.rank() < last) {
            world.all().recv(word, last);
            std::this_thread::sleep_for(std::chrono::milliseconds(world.is_root() ? 100 : 400));
            fail(fault, "test", "a call that the failed rank had to do with");
        }
        const Place inner("writing what it had computed");
        for (int r = 0; r < last; ++r) world.all().send(word, r);
        fail(Fault::internal, "test", "no space left");
    }
    if (how == "internal-kept") {
        Watchdog::keep_message_in(std::getenv("LEVIN_TEST_FOLDER"), false);
        return one_rank_fails(world, []() -> int { fail(Fault::internal, "test", "no space left"); });
    }
    if (how == "killed-root") {
        if (!world.is_root())
            for (;;) world.all().barrier();
        waiting("waiting to be killed");
        return std::raise(SIGKILL);
    }
    if (how == "hangs")
        return one_rank_fails(world, [] {
            const Place place("asleep");
            std::this_thread::sleep_for(std::chrono::seconds(60));
            return 0;
        });
    if (how == "leaves") return one_rank_fails(world, [] { return 0; });
    if (how == "other-size" || how == "other-big-size") {
        const int64_t count = (how == "other-size" ? 4 : 40000) * (world.rank() + 1);
        world.all().all_reduce(Tensor::zeros({count}, DType::f32));
        return 0;
    }
    if (how == "other-type") {
        world.all().all_reduce(Tensor::zeros({8}, world.is_root() ? DType::f32 : DType::i32));
        return 0;
    }
    if (how == "other-call") {
        if (world.is_root())
            world.all().barrier();
        else
            world.all().all_reduce(Tensor::zeros({8}, DType::f32));
        return 0;
    }
    if (how == "other-message") {
        const Tensor tensor = Tensor::zeros({world.rank() + 5}, DType::f32);
        if (world.is_root())
            world.all().send(tensor, 1);
        else
            world.all().recv(tensor, 0);
        return 0;
    }
    std::fprintf(stderr, "unknown way to end: %s\n", how.c_str());
    return 99;
}

}  // namespace

int main(int argc, char** argv) {
    return run_ranks([&](World& world) { return end_as_told(world, argc > 1 ? argv[1] : ""); });
}
