// main() of the tests that run under mpirun: GoogleTest on every rank, one voice, and an end for all as soon
// as one rank fails.
#include <gtest/gtest.h>

#include <cstdio>

#include "parallel/agreement.h"
#include "parallel/world.h"

namespace {

// A rank whose assertion failed has left its test while the others wait in it for ever.
class EndJobOnFailure : public testing::EmptyTestEventListener {
public:
    explicit EndJobOnFailure(levin::World& world) : world_(world) {}
    void OnTestStart(const testing::TestInfo& test) override { test_ = &test; }
    void OnTestPartResult(const testing::TestPartResult& result) override {
        if (!result.failed()) return;
        // Asking UnitTest for the current test here would wait for a lock that it holds itself.
        const testing::TestInfo* test = test_;
        std::fprintf(stderr, "rank %d of %d failed %s.%s\n%s:%d: %s\n", world_.rank(), world_.size(),
                     test ? test->test_suite_name() : "-", test ? test->name() : "-",
                     result.file_name() ? result.file_name() : "", result.line_number(), result.message());
        std::fflush(nullptr);
        world_.all().abort(1);
    }

private:
    levin::World& world_;
    const testing::TestInfo* test_ = nullptr;
};

}  // namespace

int main(int argc, char** argv) {
    testing::InitGoogleTest(&argc, argv);
    return levin::run_ranks([](levin::World& world) {
        testing::TestEventListeners& listeners = testing::UnitTest::GetInstance()->listeners();
        if (!world.is_root()) delete listeners.Release(listeners.default_result_printer());
        listeners.Append(new EndJobOnFailure(world));
        return RUN_ALL_TESTS();
    });
}
