// Every collective on GPUs against the MPI back end on the same numbers. One rank, one GPU: the job has two
// ranks.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "core/random.h"
#include "kernels/device_memory.h"
#include "parallel/communication_meter.h"
#include "parallel/data_parallel.h"
#include "parallel/nccl/nccl_communicator.h"
#include "parallel/routed.h"
#include "parallel/world.h"

namespace levin {
namespace {

constexpr DType kReduced[] = {DType::f64, DType::f32, DType::bf16, DType::i64, DType::i32};
constexpr DType kAll[] = {DType::f64, DType::f32, DType::bf16, DType::i64, DType::i32,
                          DType::i16, DType::i8,  DType::u16,  DType::u8};
constexpr int64_t kSizes[] = {0, 1, 7, 1000, 65537, 3000000};

// Numbers of rank `rank` in host memory, whole numbers among them so that every type can hold them.
Tensor contribution(int rank, DType dtype, int64_t count) {
    const Tensor values = Tensor::empty({count}, DType::f64);
    for (int64_t i = 0; i < count; ++i) {
        const auto whole = static_cast<double>((i * 2654435761u + 977u * static_cast<unsigned>(rank)) % 97);
        values.data<double>()[i] = is_floating(dtype) ? whole / 7 - 5 : whole;
    }
    if (is_floating(dtype)) return values.to(dtype);
    const Tensor bytes = Tensor::zeros({count}, dtype);
    for (int64_t i = 0; i < count; ++i) {
        const auto value = static_cast<int64_t>(values.data<double>()[i]);
        std::memcpy(static_cast<char*>(bytes.data()) + static_cast<size_t>(i) * size_of(dtype), &value,
                    size_of(dtype));  // little-endian
    }
    return bytes;
}

bool same_bits(const Tensor& a, const Tensor& b) {
    const Tensor left = a.to(Device{}), right = b.to(Device{});
    return left.dtype() == right.dtype() && left.count() == right.count() &&
           (left.bytes() == 0 || std::memcmp(left.data(), right.data(), left.bytes()) == 0);
}

std::string label(DType dtype, int64_t count) { return to_string(dtype) + " x " + std::to_string(count); }

class Nccl : public testing::Test {
protected:
    Device gpu = World::current().device(DeviceType::cuda);
    Communicator& world = World::current().all();
    int rank = world.rank(), size = world.size();
};

TEST_F(Nccl, ReductionsAreThoseOfTheHost) {
    ASSERT_EQ(size, 2) << "with two ranks a sum has one order, and both back ends give the same bits";
    for (DType dtype : kReduced)
        for (int64_t count : kSizes)
            for (ReduceOp op : {ReduceOp::sum, ReduceOp::max}) {
                const Tensor expected = contribution(rank, dtype, count * size);
                const Tensor whole = expected.to(gpu);
                const Tensor part = Tensor::empty({count}, dtype, gpu);
                world.all_reduce(expected, op);
                world.reduce_scatter(whole, part, op);
                ASSERT_TRUE(same_bits(part, expected.narrow(0, rank * count, count))) << label(dtype, count);
                world.all_reduce(whole, op);
                ASSERT_TRUE(same_bits(whole, expected)) << label(dtype, count);
                const Tensor place = contribution(rank, dtype, count * size).to(gpu);
                world.reduce_scatter(place, place.narrow(0, rank * count, count), op);
                ASSERT_TRUE(
                    same_bits(place.narrow(0, rank * count, count), expected.narrow(0, rank * count, count)))
                    << label(dtype, count);
            }
}

TEST_F(Nccl, GatherBroadcastAndMessagesCarryEveryType) {
    const int next = (rank + 1) % size, previous = (rank + size - 1) % size;
    for (DType dtype : kAll)
        for (int64_t count : kSizes) {
            const Tensor mine = contribution(rank, dtype, count).to(gpu);
            const Tensor whole = Tensor::empty({size, count}, dtype, gpu);
            world.all_gather(mine, whole);
            for (int r = 0; r < size; ++r)
                ASSERT_TRUE(same_bits(whole.narrow(0, r, 1).view({count}), contribution(r, dtype, count)))
                    << label(dtype, count);
            for (int root = 0; root < size; ++root) {
                const Tensor copy = mine.clone();
                world.broadcast(copy, root);
                ASSERT_TRUE(same_bits(copy, contribution(root, dtype, count))) << label(dtype, count);
            }
            const Tensor theirs = Tensor::empty({count}, dtype, gpu);
            world.group([&] {
                world.send(mine, next);
                world.recv(theirs, previous);
            });
            ASSERT_TRUE(same_bits(theirs, contribution(previous, dtype, count))) << label(dtype, count);
        }
}

TEST_F(Nccl, GroupOfBothDevicesAndSeveralTypes) {
    const Tensor a = contribution(rank, DType::bf16, 5003), b = contribution(rank, DType::f32, 11);
    const Tensor on_gpu = a.to(gpu), also = b.to(gpu), on_host = b.clone();
    world.group([&] {
        world.all_reduce(on_gpu);
        world.all_reduce(on_host);
        world.all_reduce(also, ReduceOp::max);
        world.barrier();
    });
    world.all_reduce(a);
    EXPECT_TRUE(same_bits(on_gpu, a));
    const Tensor sum = b.clone();
    world.all_reduce(sum);
    EXPECT_TRUE(same_bits(on_host, sum));
    world.all_reduce(b, ReduceOp::max);
    EXPECT_TRUE(same_bits(also, b));
}

TEST_F(Nccl, OperationsAreOrderedAfterTheTensorsStream) {
    // Each fill is queued, not done, when the collective is called; nothing here waits on the host until the
    // end.
    const Tensor tensor = Tensor::zeros({8 << 20}, DType::f32, gpu);
    for (int i = 1; i <= 30; ++i) {
        Tensor target = tensor;
        target.fill(i + rank);
        const Pending work = world.start_all_reduce(target);
        const Tensor other = Tensor::full({1 << 20}, i, DType::f32, gpu);  // computes meanwhile
        work->wait();
        if (i % 10 == 0) {
            ASSERT_EQ(tensor.narrow(0, 0, 1).item(), size * i + size * (size - 1) / 2.0);
            ASSERT_EQ(tensor.narrow(0, tensor.count() - 1, 1).item(), size * i + size * (size - 1) / 2.0);
        }
    }
    // A work that nobody waited for gives its memory back in order.
    for (int i = 0; i < 20; ++i) {
        Tensor target = Tensor::full({4 << 20}, 1, DType::f32, gpu);
        world.start_all_reduce(target);
        target = {};
        const Tensor next = Tensor::full({4 << 20}, 7, DType::f32, gpu);
        ASSERT_EQ(next.narrow(0, 12345, 1).item(), 7);
    }
}

TEST_F(Nccl, TestEndsWithoutWait) {
    const Tensor tensor = contribution(rank, DType::f32, 3000000).to(gpu);
    const Pending work = world.start_all_reduce(tensor);
    int64_t rounds = 0;
    while (!work->test()) ASSERT_LT(++rounds, int64_t{1} << 32);
    work->wait();
    const Tensor expected = contribution(rank, DType::f32, 3000000);
    world.all_reduce(expected);
    EXPECT_TRUE(same_bits(tensor, expected));
}

TEST_F(Nccl, SplitCarriesTheGpusAlong) {
    const std::shared_ptr<Communicator> turned = world.split(0, -rank, "turned");
    ASSERT_EQ(turned->rank(), size - 1 - rank);
    const Tensor mine = Tensor::full({1000}, turned->rank(), DType::f32, gpu);
    const Tensor all = Tensor::empty({size, 1000}, DType::f32, gpu);
    turned->all_gather(mine, all);
    for (int r = 0; r < size; ++r) EXPECT_EQ(all.narrow(0, r, 1).view({1000}).narrow(0, 5, 1).item(), r);
    const std::shared_ptr<Communicator> alone = world.split(rank, 0, "alone");
    alone->all_reduce(mine);
    EXPECT_EQ(mine.narrow(0, 7, 1).item(), turned->rank());
    EXPECT_EQ(world.split(-1, 0, "nobody"), nullptr);
}

// Large tensors over the copy engines are summed in rank order, like those of the host: the same bits with
// any number of ranks. Ragged shares, places within the whole, sizes that take one chunk and many.
TEST_F(Nccl, CopyEnginesGiveTheSumsOfTheHost) {
    for (const CopyEngines use : {CopyEngines::overlapped, CopyEngines::awaited}) {
        if (use == CopyEngines::awaited && size > 2) continue;  // over NCCL, which has an order of its own
        const auto copied = world.split(0, rank, "copied", {.copy_engines = use});
        const auto* routed = dynamic_cast<const RoutedCommunicator*>(copied.get());
        ASSERT_NE(routed, nullptr);
        ASSERT_TRUE(routed->copy_engines()) << "GPUs of one host that cannot reach each other's memory";
        for (const auto& [dtype, count] : {std::pair{DType::f32, 4194304},
                                           {DType::f32, 4194305},
                                           {DType::f32, 67654321},
                                           {DType::bf16, 12345678},
                                           {DType::f64, 12345678}}) {
            const Tensor expected = contribution(rank, dtype, count), tensor = expected.to(gpu);
            world.all_reduce(expected);
            copied->all_reduce(tensor);
            ASSERT_TRUE(same_bits(tensor, expected)) << "all_reduce of " << label(dtype, count);

            const int64_t share = count / size;
            const Tensor place = contribution(rank, dtype, share * size), whole = place.to(gpu);
            world.all_reduce(place);
            const Tensor part = Tensor::full({share}, 77, dtype, gpu),
                         mine = place.narrow(0, rank * share, share);
            const Tensor read = contribution(rank, dtype, count).to(gpu);
            const std::shared_ptr<void> exposed = copied->expose({read});
            ASSERT_NE(exposed, nullptr);
            copied->all_reduce(read);
            ASSERT_TRUE(same_bits(read, expected)) << "all_reduce in place of " << label(dtype, count);
            copied->reduce_scatter(whole, part);
            ASSERT_TRUE(same_bits(part, mine)) << "reduce_scatter of " << label(dtype, count);
            copied->reduce_scatter(whole, whole.narrow(0, rank * share, share));
            ASSERT_TRUE(same_bits(whole.narrow(0, rank * share, share), mine)) << label(dtype, count);

            const Tensor gathered = Tensor::full({share * size}, 77, dtype, gpu);
            copied->all_gather(part, gathered);
            ASSERT_TRUE(same_bits(gathered, place)) << "all_gather of " << label(dtype, count);
            copied->all_gather(whole.narrow(0, rank * share, share), whole);
            ASSERT_TRUE(same_bits(whole, place)) << label(dtype, count);
        }
    }
}

// Many at once, on two communicators, in groups with small ones that NCCL carries, beside computation; nobody
// waits for the host until the end.
TEST_F(Nccl, CopyEnginesInFlightTogether) {
    const auto one = world.split(0, rank, "one", {.copy_engines = CopyEngines::awaited});
    const auto two = world.split(0, rank, "two", {.copy_engines = CopyEngines::overlapped});
    std::vector<Tensor> sums, gathered, small;
    std::vector<Pending> works;
    for (int i = 0; i < 40; ++i) {
        sums.push_back(Tensor::full({2000003 + 1000 * i}, i + rank, DType::f32, gpu));
        works.push_back(one->start_all_reduce(sums.back()));
        gathered.push_back(Tensor::full({size * (1 << 20)}, -1, DType::f32, gpu));
        const Tensor part = Tensor::full({1 << 20}, 100 * i + rank, DType::f32, gpu);
        works.push_back(two->start_all_gather(part, gathered.back()));
        small.push_back(Tensor::full({1000}, i + rank, DType::f32, gpu));
        const Tensor large = Tensor::full({2 << 20}, i + rank, DType::f32, gpu);
        two->group([&] {
            two->all_reduce(small.back());
            two->all_reduce(large);
        });
        small.push_back(large.narrow(0, (2 << 20) - 1000, 1000));
    }
    for (const Pending& work : works) work->wait();
    for (int i = 0; i < 40; ++i) {
        const double sum = size * i + size * (size - 1) / 2.0;
        const Tensor host = sums[size_t(i)].to(Device{});
        for (int64_t at = 0; at < host.count(); ++at)
            ASSERT_EQ(host.data<float>()[at], sum) << i << " " << at;
        for (int r = 0; r < size; ++r)
            for (const int64_t at : {int64_t{0}, (int64_t{1} << 20) - 1})
                ASSERT_EQ(gathered[size_t(i)].narrow(0, r * (1 << 20) + at, 1).item(), 100 * i + r);
        for (const size_t at : {size_t(2 * i), size_t(2 * i + 1)})
            for (const int64_t element : {0, 999}) ASSERT_EQ(small[at].narrow(0, element, 1).item(), sum);
    }
}

// Peers read exposed parts; each is rewritten as soon as its gather has ended, which nobody may see. Parts in
// memory of their own, in their place of the whole, and one too small to be exposed, gathered in one launch.
TEST_F(Nccl, ExposedPartsAreReadWhereTheyLie) {
    const auto copied = world.split(0, rank, "exposed", {.copy_engines = CopyEngines::overlapped});
    const int64_t large = 5000003, small = 200000;
    for (int round = 0; round < 2; ++round) {  // the second finds the same memory in the cache
        const Tensor place = Tensor::full({size * large}, -1, DType::bf16, gpu);
        const std::vector<Tensor> parts{Tensor::full({large}, -1, DType::f32, gpu),
                                        place.narrow(0, rank * large, large),
                                        Tensor::full({small}, -1, DType::f32, gpu)};
        const std::shared_ptr<void> exposed = copied->expose(parts);
        ASSERT_NE(exposed, nullptr);
        for (int i = 0; i < 20; ++i) {
            std::vector<Tensor> wholes;
            std::vector<Pending> works;
            for (Tensor part : parts) {
                part.fill(4 * i + rank);
                wholes.push_back(part.shares_storage(place)
                                     ? place
                                     : Tensor::full({size * part.count()}, -1, part.dtype(), gpu));
            }
            copied->group([&] {
                for (size_t p = 0; p < parts.size(); ++p)
                    works.push_back(copied->start_all_gather(parts[p], wholes[p]));
            });
            const Tensor meanwhile = Tensor::full({1 << 22}, i, DType::f32, gpu);
            for (const Pending& work : works) work->wait();
            std::vector<Tensor> kept;
            for (const Tensor& whole : wholes) kept.push_back(whole.clone());
            for (Tensor part : parts) part.fill(-7);
            for (size_t p = 0; p < parts.size(); ++p)
                for (int r = 0; r < size; ++r)
                    ASSERT_TRUE(same_bits(kept[p].narrow(0, r * parts[p].count(), parts[p].count()),
                                          Tensor::full({parts[p].count()}, 4 * i + r, parts[p].dtype())))
                        << "part " << p << " of rank " << r << ", gather " << i;
        }
    }
}

// What ZeRO gathers over copy engines is what ranks alone compute, at every stage, while first parameters
// travel and the others are still being written.
TEST_F(Nccl, ParametersOfEveryStageArriveOverCopyEngines) {
    const auto copied = world.split(0, rank, "zero", {.copy_engines = CopyEngines::overlapped});
    for (const int stage : {1, 2, 3}) {
        std::vector<Variable> parameters;
        DataParallel::Options options{.bucket_bytes = size_t{1} << 20, .stage = stage};
        for (int i = 0; i < 6; ++i) {
            parameters.emplace_back(Tensor::zeros({1024, 2048 + 64 * i}, DType::bf16, gpu), true);
            options.units.push_back(i / 2);
        }
        DataParallel data_parallel(parameters, copied, options);
        for (int update = 1; update < 6; ++update) {
            data_parallel.reduce_next_backward();
            for (size_t i = parameters.size(); i-- > 0;)
                accumulate_gradient(parameters[i], [&](Tensor& target, double) { target.fill(rank + 1); });
            data_parallel.finish();
            for (const bool first : {true, false}) {
                for (const OwnedRange& range : data_parallel.owned()) {
                    if (range.first != first) continue;
                    ASSERT_EQ(range.gradient.narrow(0, range.count - 1, 1).item(), size * (size + 1) / 2);
                    Tensor value = range.value;
                    value.fill(update + static_cast<double>(range.parameter) / 8);
                }
                if (first) data_parallel.publish_first();
            }
            data_parallel.publish();
            for (size_t i = 0; i < parameters.size(); ++i) {
                const Tensor& value = parameters[i].value();
                ASSERT_TRUE(same_bits(
                    value.view({value.count()}),
                    Tensor::full({value.count()}, update + static_cast<double>(i) / 8, DType::bf16)))
                    << "stage " << stage << " update " << update << " parameter " << i;
                parameters[i].clear_gradient();
            }
        }
    }
}

// What goes out with a large sum, and works waited for in any order.
TEST_F(Nccl, GroupsOfLargeAndSmallSumsAreAwaitedInAnyOrder) {
    const auto ranks = world.split(0, rank, "awaited", {.copy_engines = CopyEngines::awaited});
    struct Sums {
        Tensor large, small;
        std::vector<Pending> works;
    };
    std::vector<Sums> all;
    for (int i = 0; i < 12; ++i) {
        Sums sums{Tensor::full({2 << 20}, i + rank, DType::f32, gpu),
                  Tensor::full({1000 + i}, 10 * i + rank, DType::f32, gpu),
                  {}};
        ranks->group([&] {
            sums.works = {ranks->start_all_reduce(sums.large), ranks->start_all_reduce(sums.small)};
        });
        all.push_back(std::move(sums));
        if (i < 3) continue;  // four under way
        Sums& due = all[static_cast<size_t>(i % 2 ? i - 2 : i - 3)];
        for (const Pending& work : due.works) work->wait();
    }
    for (Sums& sums : all)
        for (const Pending& work : sums.works) work->wait();
    for (int i = 0; i < 12; ++i) {
        const Sums& sums = all[static_cast<size_t>(i)];
        const double ranks_sum = size * (size - 1) / 2.0;
        for (const double value : sums.large.narrow(0, (2 << 20) - 1000, 1000).to_vector())
            ASSERT_EQ(value, size * i + ranks_sum) << i;
        for (const double value : sums.small.to_vector()) ASSERT_EQ(value, size * 10 * i + ranks_sum) << i;
    }
}

// 64 MiB take a while on any link; a stream that waits for them at once stands still for about that time, one
// that comes when they are there does not.
TEST_F(Nccl, ExposedTimeIsWhatTheStreamWaits) {
    const Tensor tensor = Tensor::zeros({16 << 20}, DType::f32, gpu);
    world.all_reduce(tensor);
    kernels::synchronize(tensor.stream());
    CommunicationMeter meter;
    const auto measured = [&] {
        kernels::synchronize(tensor.stream());
        const CommunicationTime time = meter.take(DeviceType::cuda)[world.name()];
        EXPECT_EQ(meter.take(DeviceType::cuda)[world.name()].busy_ms, 0) << "counted once";
        return time;
    };
    world.barrier();
    world.all_reduce(tensor);
    const CommunicationTime at_once = measured();
    EXPECT_GT(at_once.busy_ms, 0.05);  // at most 1280 GB/s
    EXPECT_GT(at_once.exposed_ms, 0.5 * at_once.busy_ms);
    world.barrier();
    const Pending work = world.start_all_reduce(tensor);
    while (!work->test()) continue;
    work->wait();
    const CommunicationTime later = measured();
    EXPECT_GT(later.busy_ms, 0.05);
    EXPECT_EQ(later.exposed_ms, 0);
    world.group([&] {  // two operations, one launch, one time
        world.all_reduce(tensor.narrow(0, 0, 8 << 20));
        world.all_reduce(tensor.narrow(0, 8 << 20, 8 << 20));
    });
    const CommunicationTime grouped = measured();
    EXPECT_GT(grouped.busy_ms, 0.05);
    EXPECT_GT(grouped.exposed_ms, 0.5 * grouped.busy_ms);
    EXPECT_LT(grouped.exposed_ms, 1.5 * grouped.busy_ms + 0.1);
}

TEST_F(Nccl, GradientsMayCrossAsBf16AtEveryStage) {
    for (const int stage : {0, 1, 2, 3})
        for (const bool once : {false, true}) {  // formed as bf16, or rounded on the way
            // In small buckets, and in one of 7 MiB or more, which copy engines may carry.
            for (const int64_t rows : {64, 15000}) {
                std::vector<Variable> parameters;
                for (int i = 0; i < 5; ++i)
                    parameters.emplace_back(Tensor::zeros({rows, 48}, once ? DType::bf16 : DType::f32, gpu),
                                            true);
                DataParallel data_parallel(parameters, World::current().communicator(),
                                           {.bucket_bytes = rows == 64 ? size_t{20000} : size_t{1} << 30,
                                            .stage = stage,
                                            .units = {},
                                            .reduce_in_bf16 = true,
                                            .formed_in_bf16 = std::vector<bool>(5, once)});
                for (int update = 0; update < 2; ++update) {
                    data_parallel.reduce_next_backward();
                    // 1/3 has no end in binary: what comes must be the sum of the rounded ones, rounded.
                    for (Variable& parameter : parameters)
                        accumulate_gradient(
                            parameter, [&](Tensor& target, double) { target.fill(rank + 1 / 3.0); },
                            Forms::either);
                    data_parallel.finish();
                    float expected = 0;
                    for (int r = 0; r < size; ++r)
                        expected += static_cast<float>(bf16(static_cast<float>(r + 1 / 3.0)));
                    expected = static_cast<float>(bf16(expected));
                    for (const OwnedRange& range : data_parallel.owned()) {
                        EXPECT_EQ(range.gradient.dtype(), once || stage > 0 ? DType::bf16 : DType::f32);
                        for (const double value : range.gradient.to_vector())
                            ASSERT_EQ(value, expected) << stage;
                    }
                    data_parallel.publish();
                    for (Variable& parameter : parameters) parameter.clear_gradient();
                }
            }
        }
}

TEST_F(Nccl, GradientsAreSummedForEveryBucketSize) {
    std::vector<Tensor> first;
    for (size_t bucket : {size_t{1}, size_t{5000}, size_t{64} << 20}) {
        std::vector<Variable> parameters;
        for (int i = 0; i < 5; ++i) {
            Tensor value = Tensor::empty({64, 48}, DType::f32);
            fill_normal(value, Random(3, "weight " + std::to_string(i)), 0.5);
            parameters.emplace_back(value.to(gpu), true);
        }
        DataParallel data_parallel(parameters, World::current().communicator(), bucket);
        data_parallel.reduce_next_backward();
        for (Variable& parameter : parameters)
            accumulate_gradient(parameter, [&](Tensor& target, double) { target.fill(rank + 1.5); });
        data_parallel.finish();
        for (const Variable& parameter : parameters)
            for (const double value : parameter.gradient().to_vector()) ASSERT_EQ(value, 4);
    }
}

}  // namespace
}  // namespace levin
