// What needs no second rank: local reduction, the self communicator, sharing out a host's cores.
#include <gtest/gtest.h>

#include "parallel/host.h"
#include "parallel/reduce.h"
#include "parallel/self.h"

namespace levin {
namespace {

TEST(Reduce, OrderAndRounding) {
    // 1e8 + 1 - 1e8: left to right the 1 is lost in f32.
    const std::vector<float> a = {1e8f}, b = {1.0f}, c = {-1e8f};
    float out = 7;
    const void* ordered[] = {a.data(), b.data(), c.data()};
    reduce_in_rank_order(ordered, &out, 1, DType::f32, ReduceOp::sum);
    EXPECT_EQ(out, 0.0f);
    const void* other[] = {a.data(), c.data(), b.data()};
    reduce_in_rank_order(other, &out, 1, DType::f32, ReduceOp::sum);
    EXPECT_EQ(out, 1.0f);
    // bf16: 256 + 1 + 1 = 258; rounding after each step would stay at 256.
    const bf16 x(256), y(1), z(1);
    bf16 sum;
    const void* small[] = {&x, &y, &z};
    reduce_in_rank_order(small, &sum, 1, DType::bf16, ReduceOp::sum);
    EXPECT_EQ(static_cast<float>(sum), 258.0f);
    EXPECT_THROW(reduce_in_rank_order(small, &sum, 1, DType::u8, ReduceOp::sum), Error);
}

TEST(SelfCommunicator, EverythingIsTheIdentity) {
    const std::shared_ptr<Communicator> self = make_self_communicator("world");
    EXPECT_EQ(self->rank(), 0);
    EXPECT_EQ(self->size(), 1);
    const Tensor tensor = Tensor::from<float>({3}, {1, 2, 3});
    self->all_reduce(tensor);
    self->broadcast(tensor, 0);
    EXPECT_TRUE(self->start_all_reduce(tensor, ReduceOp::max)->test());
    const Tensor copy = Tensor::zeros({1, 3}, DType::f32), part = Tensor::zeros({3}, DType::f32);
    self->all_gather(tensor, copy);
    self->reduce_scatter(copy, part);
    self->all_gather(part, part);
    EXPECT_EQ(part.to_vector(), (std::vector<double>{1, 2, 3}));
    self->barrier();
    EXPECT_THROW(self->broadcast(tensor, 1), Error);
    EXPECT_EQ(self->split(-1, 0, "none"), nullptr);
    EXPECT_EQ(self->split(5, 0, "tp")->name(), "world.tp");
}

TEST(SelfCommunicator, MessagesToItselfArriveInOrder) {
    const std::shared_ptr<Communicator> self = make_self_communicator("world");
    const Tensor a = Tensor::from<int64_t>({2}, {1, 2}), b = Tensor::from<int64_t>({2}, {3, 4});
    const Tensor first = Tensor::zeros({2}, DType::i64), second = Tensor::zeros({2}, DType::i64);
    self->group([&] {
        self->send(a, 0);
        self->send(b, 0);
        self->recv(first, 0);
        self->recv(second, 0);
    });
    EXPECT_EQ(first.to_vector(), a.to_vector());
    EXPECT_EQ(second.to_vector(), b.to_vector());
    EXPECT_THROW(self->recv(first, 0), Error);
    self->send(a, 0);
    EXPECT_THROW(self->recv(Tensor::zeros({3}, DType::i64), 0), Error);
}

TEST(Host, ThreadsAreAFairShare) {
    const std::vector<int> all = {0, 1, 2, 3, 4, 5, 6, 7};
    EXPECT_EQ(threads_for({all}, 0, {}), 8);
    EXPECT_EQ(threads_for({all, all}, 1, {}), 4);
    EXPECT_EQ(threads_for({all, all, all}, 2, {}), 2);      // 2.67 each
    EXPECT_EQ(threads_for({{0, 1}, {2, 3, 4}}, 1, {}), 3);  // bound apart
    EXPECT_EQ(threads_for({{0}, {0}, {0}}, 0, {}), 1);      // never none
    EXPECT_EQ(threads_for({all, all}, 0, 3.0), 1);          // a container's limit
    EXPECT_EQ(threads_for({all}, 0, 2.0), 2);
}

TEST(Host, ThisMachine) {
    EXPECT_FALSE(host_name().empty());
    const size_t cpus = usable_cpus().size();
    EXPECT_GE(cpus, 1u);
    clear_affinity();
    EXPECT_GE(usable_cpus().size(), cpus);
    EXPECT_GT(cpu_quota().value_or(1), 0);
}

TEST(Host, CpuListsAsTheKernelWritesThem) {
    EXPECT_EQ(parse_cpu_list("0-3,8\n"), (std::vector<int>{0, 1, 2, 3, 8}));
    EXPECT_EQ(parse_cpu_list("5"), std::vector<int>{5});
    EXPECT_TRUE(parse_cpu_list("").empty());
    EXPECT_TRUE(parse_cpu_list("none").empty());
    const std::vector<int> before = usable_cpus();
    stay_on({before[0]}, 2);  // too few: as it was
    EXPECT_EQ(usable_cpus(), before);
    stay_on({before[0]}, 1);
    EXPECT_EQ(usable_cpus(), std::vector<int>{before[0]});
    clear_affinity();
}

}  // namespace
}  // namespace levin
