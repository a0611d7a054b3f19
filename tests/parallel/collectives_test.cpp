// Every collective against a serial reference that each rank works out for itself from the same numbers.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "core/random.h"
#include "parallel/agreement.h"
#include "parallel/mpi/operation.h"
#include "parallel/world.h"

namespace levin {
namespace {

const std::vector<DType> kReduced = {DType::f64, DType::f32, DType::bf16, DType::i64, DType::i32};
const std::vector<DType> kAll = {DType::f64, DType::f32, DType::bf16, DType::i64, DType::i32,
                                 DType::i16, DType::i8,  DType::u16,  DType::u8};
const std::vector<int64_t> kSizes = {0, 1, 2, 3, 7, 31, 1000, 4099, 40001, 150001};

// Numbers of rank `rank`, with exponents spread so that another order of summation gives other bits; repeated
// after a prime number of elements, because drawing them takes longer than reducing them.
constexpr int64_t kPeriod = 65521;
double number(int rank, int64_t index) {
    static std::vector<std::vector<double>> drawn;
    while (static_cast<int>(drawn.size()) <= rank) {
        const Random random(17, "rank " + std::to_string(drawn.size()));
        std::vector<double>& values = drawn.emplace_back(kPeriod);
        for (size_t i = 0; i < values.size(); ++i)
            values[i] = random.normal(i) * std::ldexp(1.0, static_cast<int>(random.bits(i) % 20) - 10);
    }
    return drawn[static_cast<size_t>(rank)][static_cast<size_t>(index % kPeriod)];
}

template <class T>
void fill(Tensor& tensor, int rank) {
    for (int64_t i = 0; i < tensor.count(); ++i) {
        const double value = number(rank, i);
        if constexpr (std::is_same_v<T, bf16>)
            tensor.data<T>()[i] = bf16(static_cast<float>(value));
        else if constexpr (std::is_floating_point_v<T>)
            tensor.data<T>()[i] = static_cast<T>(value);
        else
            tensor.data<T>()[i] = static_cast<T>(static_cast<int64_t>(value * 1000));
    }
}

// What rank `rank` contributes.
Tensor contribution(int rank, DType dtype, int64_t count) {
    Tensor tensor = Tensor::empty({count}, dtype);
    switch (dtype) {
        case DType::f64:
            fill<double>(tensor, rank);
            break;
        case DType::f32:
            fill<float>(tensor, rank);
            break;
        case DType::bf16:
            fill<bf16>(tensor, rank);
            break;
        case DType::i64:
            fill<int64_t>(tensor, rank);
            break;
        case DType::i32:
            fill<int32_t>(tensor, rank);
            break;
        case DType::i16:
            fill<int16_t>(tensor, rank);
            break;
        case DType::i8:
            fill<int8_t>(tensor, rank);
            break;
        case DType::u16:
            fill<uint16_t>(tensor, rank);
            break;
        case DType::u8:
            fill<uint8_t>(tensor, rank);
            break;
    }
    return tensor;
}

template <class T, class A>
void reduce_serially(std::vector<Tensor>& parts, Tensor& out, ReduceOp op) {
    for (int64_t i = 0; i < out.count(); ++i) {
        A sum = static_cast<A>(parts[0].data<T>()[i]);
        for (size_t r = 1; r < parts.size(); ++r) {
            const A next = static_cast<A>(parts[r].data<T>()[i]);
            sum = op == ReduceOp::sum ? static_cast<A>(sum + next) : std::max(sum, next);
        }
        out.data<T>()[i] = static_cast<T>(sum);
    }
}

Tensor reduced(std::vector<Tensor>& parts, DType dtype, ReduceOp op) {
    Tensor out = Tensor::empty({parts[0].count()}, dtype);
    switch (dtype) {
        case DType::f64:
            reduce_serially<double, double>(parts, out, op);
            break;
        case DType::f32:
            reduce_serially<float, float>(parts, out, op);
            break;
        case DType::bf16:
            reduce_serially<bf16, float>(parts, out, op);
            break;
        case DType::i64:
            reduce_serially<int64_t, int64_t>(parts, out, op);
            break;
        default:
            reduce_serially<int32_t, int32_t>(parts, out, op);
            break;
    }
    return out;
}

Tensor reference(const std::vector<int>& ranks, DType dtype, int64_t count, ReduceOp op) {
    std::vector<Tensor> parts;
    for (int rank : ranks) parts.push_back(contribution(rank, dtype, count));
    return reduced(parts, dtype, op);
}

std::vector<int> everyone() {
    std::vector<int> ranks(static_cast<size_t>(World::current().size()));
    for (size_t i = 0; i < ranks.size(); ++i) ranks[i] = static_cast<int>(i);
    return ranks;
}

bool same_bits(const Tensor& a, const Tensor& b) {
    return a.dtype() == b.dtype() && a.count() == b.count() &&
           (a.bytes() == 0 || std::memcmp(a.data(), b.data(), a.bytes()) == 0);
}

std::string label(DType dtype, int64_t count) { return to_string(dtype) + " x " + std::to_string(count); }

class Collectives : public testing::Test {
protected:
    Communicator& world = World::current().all();
    int rank = World::current().rank();
    int size = World::current().size();
};

TEST_F(Collectives, AllReduceIsTheSerialReductionToTheBit) {
    for (DType dtype : kReduced)
        for (int64_t count : kSizes)
            for (ReduceOp op : {ReduceOp::sum, ReduceOp::max}) {
                const Tensor tensor = contribution(rank, dtype, count);
                world.all_reduce(tensor, op);
                ASSERT_TRUE(same_bits(tensor, reference(everyone(), dtype, count, op)))
                    << label(dtype, count);
            }
}

TEST_F(Collectives, AllGather) {
    for (DType dtype : kAll)
        for (int64_t count : kSizes) {
            std::vector<Tensor> parts;
            for (int r : everyone()) parts.push_back(contribution(r, dtype, count));
            const Tensor whole = Tensor::empty({size, count}, dtype);
            world.all_gather(parts[static_cast<size_t>(rank)], whole);
            // Again, from its own place.
            const Tensor place = Tensor::zeros({size, count}, dtype);
            std::memcpy(static_cast<char*>(place.data()) + parts[0].bytes() * static_cast<size_t>(rank),
                        parts[static_cast<size_t>(rank)].data(), parts[0].bytes());
            world.all_gather(place.narrow(0, rank, 1), place);
            for (int r = 0; r < size; ++r) {
                ASSERT_TRUE(same_bits(whole.narrow(0, r, 1).view({count}), parts[static_cast<size_t>(r)]))
                    << label(dtype, count);
                ASSERT_TRUE(same_bits(place.narrow(0, r, 1).view({count}), parts[static_cast<size_t>(r)]))
                    << label(dtype, count);
            }
        }
}

TEST_F(Collectives, ReduceScatterIsAShareOfAllReduce) {
    for (DType dtype : kReduced)
        for (int64_t count : kSizes)
            for (ReduceOp op : {ReduceOp::sum, ReduceOp::max}) {
                const Tensor whole = contribution(rank, dtype, count * size);
                const Tensor expected =
                    reference(everyone(), dtype, count * size, op).narrow(0, rank * count, count);
                const Tensor part = Tensor::empty({count}, dtype);
                world.reduce_scatter(whole, part, op);
                ASSERT_TRUE(same_bits(part, expected)) << label(dtype, count);
                world.reduce_scatter(whole, whole.narrow(0, rank * count, count), op);  // in place
                ASSERT_TRUE(same_bits(whole.narrow(0, rank * count, count), expected)) << label(dtype, count);
            }
}

TEST_F(Collectives, BroadcastFromEveryRoot) {
    for (DType dtype : kAll)
        for (int64_t count : kSizes)
            for (int root = 0; root < size; ++root) {
                const Tensor tensor = contribution(rank, dtype, count);
                world.broadcast(tensor, root);
                ASSERT_TRUE(same_bits(tensor, contribution(root, dtype, count))) << label(dtype, count);
            }
}

TEST_F(Collectives, SendAndReceiveAroundTheRing) {
    const int next = (rank + 1) % size, previous = (rank + size - 1) % size;
    for (int64_t count : kSizes) {
        const Tensor mine = contribution(rank, DType::f32, count),
                     also = contribution(rank, DType::bf16, count);
        const Tensor theirs = Tensor::empty({count}, DType::f32),
                     second = Tensor::empty({count}, DType::bf16);
        // Everybody sends first: only a group can end.
        world.group([&] {
            world.send(mine, next);
            world.send(also, next);
            world.recv(theirs, previous);
            world.recv(second, previous);
        });
        ASSERT_TRUE(same_bits(theirs, contribution(previous, DType::f32, count)));
        ASSERT_TRUE(same_bits(second, contribution(previous, DType::bf16, count)));
    }
}

TEST_F(Collectives, GroupOfSeveralTypes) {
    const Tensor a = contribution(rank, DType::bf16, 5003), b = contribution(rank, DType::f32, 11);
    const Tensor c = contribution(rank, DType::f64, 70001), d = contribution(rank, DType::i32, 9);
    world.group([&] {
        world.all_reduce(a);
        world.all_reduce(b);
        world.all_reduce(c, ReduceOp::max);
        world.broadcast(d, size - 1);
        world.barrier();
    });
    EXPECT_TRUE(same_bits(a, reference(everyone(), DType::bf16, 5003, ReduceOp::sum)));
    EXPECT_TRUE(same_bits(b, reference(everyone(), DType::f32, 11, ReduceOp::sum)));
    EXPECT_TRUE(same_bits(c, reference(everyone(), DType::f64, 70001, ReduceOp::max)));
    EXPECT_TRUE(same_bits(d, contribution(size - 1, DType::i32, 9)));
}

TEST_F(Collectives, StartedOperationsEndInAnyOrder) {
    std::vector<Tensor> tensors;
    std::vector<Pending> works;
    for (int i = 0; i < 40; ++i) {
        tensors.push_back(contribution(rank, DType::f32, 3000 * (i % 7) + i));
        works.push_back(world.start_all_reduce(tensors.back()));
        if (i % 3 == rank % 3) world.progress();  // the ranks get on at different paces
    }
    // Rank by rank in another order: a wait must move the other operations on too.
    for (size_t i = 0; i < works.size(); ++i)
        works[(i * 7 + static_cast<size_t>(rank) * 13) % works.size()]->wait();
    for (size_t i = 0; i < works.size(); ++i) {
        EXPECT_TRUE(works[i]->test());
        EXPECT_TRUE(
            same_bits(tensors[i], reference(everyone(), DType::f32, tensors[i].count(), ReduceOp::sum)));
    }
    EXPECT_EQ(mpi::in_flight(), 0u);
}

TEST_F(Collectives, ReductionGoesOnWhileTheCallerComputes) {
    world.barrier();
    const Tensor tensor = contribution(rank, DType::f32, 300007);
    const Pending work = world.start_all_reduce(tensor);
    // No wait() anywhere: progress alone must end it.
    int64_t rounds = 0;
    while (!work->test()) {
        world.progress();
        ASSERT_LT(++rounds, int64_t{1} << 32);
    }
    EXPECT_TRUE(same_bits(tensor, reference(everyone(), DType::f32, 300007, ReduceOp::sum)));
}

TEST_F(Collectives, CutIntoTensorsTheBitsStay) {
    const int64_t count = 100003;
    const Tensor whole = contribution(rank, DType::f32, count);
    world.all_reduce(whole);
    for (int64_t piece : {1000, 4096, 33333, 99999}) {
        const Tensor cut = contribution(rank, DType::f32, count);
        for (int64_t start = 0; start < count; start += piece)
            world.all_reduce(cut.narrow(0, start, std::min(piece, count - start)));
        ASSERT_TRUE(same_bits(cut, whole)) << piece;
    }
}

TEST_F(Collectives, MessagesAboveTheLargestPieceAreCut) {
    const size_t before = mpi::piece_bytes();
    mpi::set_piece_bytes(1000);  // stands for the 2^31 that MPI can count
    const Tensor tensor = contribution(rank, DType::f64, 40001);
    world.all_reduce(tensor);
    EXPECT_TRUE(same_bits(tensor, reference(everyone(), DType::f64, 40001, ReduceOp::sum)));
    const Tensor copy = contribution(rank, DType::i16, 4099);
    world.broadcast(copy, 0);
    EXPECT_TRUE(same_bits(copy, contribution(0, DType::i16, 4099)));
    const Tensor part = contribution(rank, DType::f32, 1001), all = Tensor::empty({size, 1001}, DType::f32);
    world.all_gather(part, all);
    EXPECT_TRUE(same_bits(all.narrow(0, size - 1, 1).view({1001}), contribution(size - 1, DType::f32, 1001)));
    mpi::set_piece_bytes(before);
}

TEST_F(Collectives, NotANumberReachesEveryRank) {
    for (DType dtype : {DType::f64, DType::f32, DType::bf16})
        for (ReduceOp op : {ReduceOp::sum, ReduceOp::max})
            for (int who = 0; who < size; ++who) {
                const double mine = who == rank ? std::nan("") : 1e30;
                const Tensor tensor = Tensor::full({3}, mine, dtype);
                world.all_reduce(tensor, op);
                for (double value : tensor.to_vector()) ASSERT_TRUE(std::isnan(value)) << to_string(dtype);
            }
}

// ((host 0's ranks) + (host 1's ranks)), each sum rounded: ranks dealt out in blocks and one by one.
TEST_F(Collectives, TwoLevelsSumInHostOrder) {
    if (size != 4) return;
    for (const bool blocks : {true, false}) {
        const std::vector<std::vector<int>> hosts = blocks ? std::vector<std::vector<int>>{{0, 1}, {2, 3}}
                                                           : std::vector<std::vector<int>>{{0, 2}, {1, 3}};
        const auto ranks = world.split(0, rank, "hosts", {.host = blocks ? rank / 2 : 7 - rank % 2});
        for (DType dtype : kReduced)
            for (ReduceOp op : {ReduceOp::sum, ReduceOp::max})
                for (int64_t count : {0, 1, 3, 31, 1000, 1024, 2051, 40004}) {
                    std::vector<Tensor> sums;
                    for (const std::vector<int>& members : hosts)
                        sums.push_back(reference(members, dtype, count, op));
                    const Tensor expected = reduced(sums, dtype, op);
                    const Tensor tensor = contribution(rank, dtype, count);
                    ranks->all_reduce(tensor, op);
                    ASSERT_TRUE(same_bits(tensor, expected)) << label(dtype, count) << " blocks " << blocks;
                    const int64_t share = count / size;
                    if (share * size != count) continue;
                    const Tensor part = Tensor::empty({share}, dtype),
                                 whole = contribution(rank, dtype, count);
                    ranks->reduce_scatter(whole, part, op);
                    ASSERT_TRUE(same_bits(part, expected.narrow(0, rank * share, share)))
                        << label(dtype, count);
                    // In place, and a gather of it while a flat one is under way.
                    const Tensor mine = whole.narrow(0, rank * share, share);
                    ranks->reduce_scatter(whole, mine, op);
                    const Tensor other = Tensor::empty({count}, dtype);
                    const Pending both[] = {ranks->start_all_gather(mine, whole),
                                            world.start_all_gather(part, other)};
                    both[1]->wait();
                    both[0]->wait();
                    ASSERT_TRUE(same_bits(whole, expected)) << label(dtype, count);
                    ASSERT_TRUE(same_bits(other, expected)) << label(dtype, count);
                }
        for (DType dtype : kAll) {
            const Tensor mine = contribution(rank, dtype, 1003), whole = Tensor::empty({size, 1003}, dtype);
            ranks->all_gather(mine, whole);
            for (int r = 0; r < size; ++r)
                ASSERT_TRUE(same_bits(whole.narrow(0, r, 1).view({1003}), contribution(r, dtype, 1003)));
        }
    }
}

TEST_F(Collectives, HostsWithUnequalRanksWorkInOneLevel) {
    for (const int per_host : {1, 3, size}) {
        if (size % per_host == 0 && per_host > 1 && per_host < size) continue;
        const auto ranks = world.split(0, rank, "hosts", {.host = rank / per_host});
        const Tensor tensor = contribution(rank, DType::f32, 40001);
        ranks->all_reduce(tensor);
        ASSERT_TRUE(same_bits(tensor, reference(everyone(), DType::f32, 40001, ReduceOp::sum))) << per_host;
    }
}

TEST_F(Collectives, SplitBySharedColour) {
    // Even and odd ranks, in reverse order.
    const std::shared_ptr<Communicator> half = world.split(rank % 2, -rank, "half");
    std::vector<int> members;
    for (int r = size; r-- > 0;)
        if (r % 2 == rank % 2) members.push_back(r);
    ASSERT_EQ(half->size(), static_cast<int>(members.size()));
    ASSERT_EQ(members[static_cast<size_t>(half->rank())], rank);
    EXPECT_EQ(half->name(), "world.half");
    for (int64_t count : kSizes) {
        const Tensor tensor = contribution(rank, DType::f32, count),
                     all = contribution(rank, DType::f32, count);
        // Both communicators at once: what is in flight on one must not disturb the other.
        const Pending inner = half->start_all_reduce(tensor), outer = world.start_all_reduce(all);
        outer->wait();
        inner->wait();
        ASSERT_TRUE(same_bits(tensor, reference(members, DType::f32, count, ReduceOp::sum))) << count;
        ASSERT_TRUE(same_bits(all, reference(everyone(), DType::f32, count, ReduceOp::sum))) << count;
    }
    const std::shared_ptr<Communicator> first = world.split(rank == 0 ? 0 : -1, 0, "first");
    EXPECT_EQ(first == nullptr, rank != 0);
    EXPECT_EQ(first ? first->size() : 1, 1);
}

TEST_F(Collectives, TheSameBitsOnEveryRunAndRank) {
    Tensor first;
    for (int run = 0; run < 20; ++run) {
        const Tensor tensor = contribution(rank, DType::f32, 20011);
        world.all_reduce(tensor);
        if (run == 0) first = tensor;
        ASSERT_TRUE(same_bits(tensor, first));
    }
    const Tensor root = first.clone();
    world.broadcast(root, 0);
    EXPECT_TRUE(same_bits(first, root));
}

TEST_F(Collectives, ManyCallsReuseTheirTags) {
    for (int64_t i = 0; i < 17000; ++i) ASSERT_EQ(max_over(world, i * size + rank), i * size + size - 1);
}

TEST_F(Collectives, Agreement) {
    EXPECT_TRUE(any_agree(world, rank == size - 1));
    EXPECT_FALSE(any_agree(world, false));
    EXPECT_TRUE(all_agree(world, true));
    EXPECT_FALSE(all_agree(world, rank != size - 1));
    EXPECT_EQ(max_over(world, int64_t{rank}), size - 1);
    EXPECT_EQ(max_over(world, -1.5 - rank), -1.5);
    EXPECT_EQ(sum_over(world, rank + 1.0), size * (size + 1) / 2.0);
    for (int root = 0; root < size; ++root) {
        EXPECT_EQ(broadcast_text(world, "from " + std::to_string(rank), root),
                  "from " + std::to_string(root));
        EXPECT_EQ(broadcast_text(world, rank == root ? "" : "x", root), "");
    }
    const std::vector<std::string> texts = gather_texts(world, std::string(static_cast<size_t>(rank), 'x'));
    for (int r = 0; r < size; ++r)
        EXPECT_EQ(texts[static_cast<size_t>(r)], std::string(static_cast<size_t>(r), 'x'));
    require_same(world, "the number of layers", "24");
    try {
        require_same(world, "the number of layers", rank == 0 ? "24" : "16");
        EXPECT_EQ(size, 1);
    } catch (const Error& error) {
        EXPECT_EQ(error.fault(), Fault::communication);
        EXPECT_NE(std::string(error.what()).find("rank 0 has \"24\", rank 1 has \"16\""), std::string::npos);
    }
}

TEST_F(Collectives, Places) {
    const std::vector<RankPlace> places = World::current().places();
    ASSERT_EQ(places.size(), static_cast<size_t>(size));
    const RankPlace& mine = World::current().place();
    EXPECT_EQ(places[static_cast<size_t>(rank)].host, mine.host);
    EXPECT_EQ(places[static_cast<size_t>(rank)].local_rank, rank);  // one host here
    EXPECT_EQ(mine.local_size, size);
    EXPECT_EQ(World::current().host().size(), size);
    EXPECT_GE(mine.threads, 1);
    EXPECT_LE(mine.threads, mine.cores);
}

TEST_F(Collectives, MistakesOfTheCallerAreBugs) {
    const auto fault_of = [](const std::function<void()>& call) {
        try {
            call();
        } catch (const Error& error) {
            return error.fault();
        }
        return Fault::input;
    };
    const Tensor matrix = Tensor::zeros({4, 4}, DType::f32), bytes = Tensor::zeros({4}, DType::u8);
    EXPECT_EQ(fault_of([&] { world.all_reduce(matrix.narrow(1, 0, 2)); }), Fault::internal);
    EXPECT_EQ(fault_of([&] { world.all_reduce(bytes); }), Fault::internal);
    EXPECT_EQ(fault_of([&] { world.all_reduce(Tensor()); }), Fault::internal);
    EXPECT_EQ(fault_of([&] { world.broadcast(matrix, size); }), Fault::internal);
    EXPECT_EQ(fault_of([&] { world.all_gather(matrix, Tensor::zeros({size * 16 + 1}, DType::f32)); }),
              Fault::internal);
    EXPECT_EQ(fault_of([&] {
                  world.reduce_scatter(Tensor::zeros({size}, DType::f64), Tensor::zeros({1}, DType::f32));
              }),
              Fault::internal);
    EXPECT_EQ(fault_of([&] { world.group([&] { world.group([] {}); }); }), Fault::internal);
    world.barrier();
}

}  // namespace
}  // namespace levin
