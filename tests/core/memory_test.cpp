// Accounting of memory: by category, by op, at the peak, and what is said when there is none left.
#include "core/memory.h"

#include <gtest/gtest.h>

#include <optional>

#include "core/ops.h"
#include "kernels/device_memory.h"
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

// What recorded work writes to stays its own, for whatever it was last taken.
TEST(Memory, APoolKeepsItsBlocksApart) {
    const auto taken = [] {
        const OpScope scope("in the pool");
        MemoryScope category(MemoryCategory::workspace);
        return Tensor::empty({3 << 18}, DType::f32);
    };
    const MemoryStatistics before = memory_statistics({});
    const auto workspace = static_cast<size_t>(MemoryCategory::workspace);
    const auto activations = static_cast<size_t>(MemoryCategory::activations);
    constexpr size_t kBytes = size_t{3} << 20;
    std::optional<MemoryPool> pool(std::in_place, Device{});
    const void* address = nullptr;
    {
        const MemoryPool::Scope scope(*pool);
        EXPECT_TRUE(MemoryPool::in_use({}));
        const Tensor tensor = taken();
        address = tensor.data();
        EXPECT_EQ(pool->blocks_with_users(), 1u);
    }
    EXPECT_FALSE(MemoryPool::in_use({}));
    EXPECT_EQ(pool->blocks_with_users(), 0u);
    EXPECT_EQ(pool->bytes(), kBytes);
    // Idle, it still counts as what it was, and nobody else gets it.
    MemoryStatistics now = memory_statistics({});
    EXPECT_EQ(now.live[workspace], before.live[workspace] + kBytes);
    EXPECT_EQ(now.in_pools, kBytes);
    EXPECT_EQ(bytes_of(memory_uses({}), "in the pool", false), kBytes);
    EXPECT_NE(memory_table({}).find("set aside"), std::string::npos);
    release_cached_memory({});
    const Tensor outside = taken();
    EXPECT_NE(outside.data(), address);

    // The same address again, now for something else; a tensor may outlive the pool's owner.
    Tensor kept;
    {
        const MemoryPool::Scope scope(*pool);
        kept = Tensor::empty({3 << 18}, DType::f32);
        EXPECT_EQ(kept.data(), address);
        const MemoryPool other({});
        const MemoryPool::Scope inner(other);
        EXPECT_NE(taken().data(), address);
        EXPECT_EQ(other.bytes(), kBytes);
    }
    now = memory_statistics({});
    EXPECT_EQ(now.live[workspace], before.live[workspace] + kBytes) << "the tensor outside";
    EXPECT_EQ(now.live[activations], before.live[activations] + kBytes);
    pool.reset();
    kept.fill(1);
    EXPECT_EQ(kept.data<float>()[12345], 1);
    EXPECT_EQ(memory_statistics({}).in_pools, kBytes);
    kept = {};
    now = memory_statistics({});
    EXPECT_EQ(now.in_pools, 0u);
    EXPECT_EQ(now.live_total, before.live_total + kBytes);
    EXPECT_EQ(memory_table({}).find("set aside"), std::string::npos);
    const Tensor again = taken();
    EXPECT_EQ(again.data(), address) << "back in the cache";
}

TEST(Memory, APoolTakesWhatTheCacheHasAndNeverEmptiesIt) {
    const void* address = nullptr;
    {
        const Tensor tensor = Tensor::empty({5 << 18}, DType::f32);
        address = tensor.data();
    }
    const MemoryPool pool({});
    const MemoryPool::Scope scope(pool);
    const size_t cached = memory_statistics({}).cached;
    EXPECT_THROW(Tensor::empty({int64_t{1} << 52}, DType::f64), Error);
    EXPECT_EQ(memory_statistics({}).cached, cached);
    EXPECT_EQ(pool.bytes(), 0u);
    const Tensor tensor = Tensor::empty({5 << 18}, DType::f32);
    EXPECT_EQ(tensor.data(), address);
    EXPECT_EQ(memory_statistics({}).cached, cached - pool.bytes());
    try {
        Tensor::empty({int64_t{1} << 52}, DType::f64);
        FAIL() << "32 PiB were found";
    } catch (const Error& error) {
        EXPECT_NE(std::string(error.what()).find("trainer.step_graph=off"), std::string::npos)
            << error.what();
    }
}

// Kernels take their scratch memory from it too.
TEST(Memory, APoolIsASourceOfScratchMemory) {
    EXPECT_EQ(kernels::scratch_source(), nullptr);
    const MemoryPool pool({});
    {
        const MemoryPool::Scope scope(pool);
        kernels::ScratchSource* source = kernels::scratch_source();
        ASSERT_NE(source, nullptr);
        void* data = source->take(1000);
        EXPECT_EQ(pool.bytes(), 1024u);
        EXPECT_EQ(bytes_of(memory_uses({}), "kernel scratch", false), 1024u);
        EXPECT_TRUE(source->give(data));
        EXPECT_EQ(source->take(1020), data);
        EXPECT_TRUE(source->give(data));
        EXPECT_FALSE(source->give(data)) << "not in use";
    }
    EXPECT_EQ(kernels::scratch_source(), nullptr);
    EXPECT_EQ(pool.blocks_with_users(), 0u);
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
