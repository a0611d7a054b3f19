// Accounting of memory: by category, by op, at the peak, and what is said when there is none left.
#include "core/memory.h"

#include <gtest/gtest.h>

#include "core/ops.h"
#include "tests/core/gradient_check.h"

namespace levin {
namespace {

size_t bytes_of(const std::vector<MemoryUse>& uses, const std::string& op, bool backward) {
    size_t bytes = 0;
    for (const MemoryUse& use : uses)
        if (op == use.op.op && backward == use.op.backward) bytes += use.bytes();
    return bytes;
}

TEST(Memory, IsNamedByTheOpThatTookIt) {
    const size_t before = bytes_of(memory_uses({}), "scale", false);
    Variable x(Tensor::full({1000, 8}, 1, DType::f64), true);
    {
        const Variable y = ops::scale(x, 2);
        EXPECT_EQ(bytes_of(memory_uses({}), "scale", false) - before, 65536u);  // 64000 in its size class
        EXPECT_EQ(OpScope::current().op, std::string("other"));
        backward(y, Tensor::full({1000, 8}, 1, DType::f64));
    }
    EXPECT_EQ(bytes_of(memory_uses({}), "scale", false), before);
    EXPECT_EQ(bytes_of(memory_uses({}), "scale", true), 65536u) << "the gradient of x, taken in backward";
    size_t total = 0;
    for (const MemoryUse& use : memory_uses({})) total += use.bytes();
    EXPECT_EQ(total, memory_statistics({}).live_total);
}

TEST(Memory, TheContentsOfThePeakAreKept) {
    const auto work = [] {
        const OpScope scope("work");
        const Tensor a = Tensor::empty({1 << 16}, DType::f32), b = Tensor::empty({1 << 16}, DType::f32);
        { const Tensor c = Tensor::empty({1 << 18}, DType::f32); }
        const Tensor d = Tensor::empty({1 << 10}, DType::f32);
    };
    reset_peak_memory({});
    work();
    const size_t peak = memory_statistics({}).peak_total;
    watch_memory({}, peak);
    EXPECT_TRUE(watched_memory_uses({}).empty());
    work();
    const auto uses = watched_memory_uses({});
    EXPECT_EQ(bytes_of(uses, "work", false), (size_t{1} << 20) + 2 * (size_t{1} << 18));
    ASSERT_FALSE(uses.empty());
    size_t total = 0;
    for (const MemoryUse& use : uses) total += use.bytes();
    EXPECT_EQ(total, peak);
}

TEST(Memory, WhenThereIsNoneLeftTheMessageSaysWhatHoldsItAndWhatToDo) {
    const OpScope scope("greedy");
    const Tensor kept = Tensor::empty({1 << 20}, DType::f32);
    try {
        Tensor::empty({int64_t{1} << 52}, DType::f64);
        FAIL() << "32 PiB were found";
    } catch (const Error& error) {
        const std::string text = error.what();
        for (const char* part :
             {"greedy", "activations", "optimizer", "Three ways out", "trainer.micro_batch",
              "trainer.recompute=full", "trainer.recompute_slice", "parallel."})
            EXPECT_NE(text.find(part), std::string::npos) << text;
    }
}

}  // namespace
}  // namespace levin
