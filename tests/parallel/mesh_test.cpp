// The grid of ranks: every place once, groups that sum what they should, and refusals that say what works.
#include "parallel/mesh.h"

#include <gtest/gtest.h>

#include "kernels/base/error.h"
#include "parallel/agreement.h"
#include "parallel/world.h"

namespace levin {
namespace {

std::string refusal(int64_t ranks, int64_t tp, int64_t cp, int64_t pp) {
    try {
        make_layout(ranks, tp, cp, pp);
    } catch (const Error& error) {
        EXPECT_EQ(error.fault(), Fault::input);
        return error.what();
    }
    return "";
}

TEST(Layout, CoordinatesAndIndexAreInverse) {
    const Layout layout{.pp = 3, .dp = 2, .cp = 4, .tp = 5};
    for (int64_t i = 0; i < layout.ranks(); ++i) EXPECT_EQ(index_of(layout, coordinates_of(layout, i)), i);
    EXPECT_EQ(coordinates_of(layout, 1).tp, 1);  // tp runs fastest, pp slowest
    EXPECT_EQ(coordinates_of(layout, 5).cp, 1);
    EXPECT_EQ(coordinates_of(layout, 20).dp, 1);
    EXPECT_EQ(coordinates_of(layout, 40).pp, 1);
}

TEST(Layout, DataParallelismTakesTheRest) {
    EXPECT_EQ(make_layout(8, 2, 1, 2), (Layout{.pp = 2, .dp = 2, .cp = 1, .tp = 2}));
    EXPECT_EQ(make_layout(1, 1, 1, 1), Layout{});
}

TEST(Layout, WhatCannotWorkIsRefusedWithTheNearestThatDoes) {
    EXPECT_NE(refusal(8, 3, 1, 1).find("parallel.tp=4 parallel.cp=1 parallel.pp=1"), std::string::npos);
    EXPECT_NE(refusal(2, 2, 2, 1).find("the job has 2 ranks"), std::string::npos);
    EXPECT_NE(refusal(1, 4, 1, 1).find("parallel.tp=1 "), std::string::npos);
    EXPECT_NE(refusal(4, INT32_MAX, INT32_MAX, INT32_MAX), "");
    EXPECT_NE(refusal(4, 0, 1, 1), "");
}

// Sum over a group of a number that tells every rank: what the group holds.
void expect_group(const Mesh& mesh, Communicator& group, const std::function<bool(const Coordinates&)>& in) {
    double expected = 0;
    int members = 0, before = 0;
    for (int rank = 0; rank < mesh.all()->size(); ++rank) {
        if (!in(mesh.place_of(rank))) continue;
        ++members;
        before += index_of(mesh.layout(), mesh.place_of(rank)) < index_of(mesh.layout(), mesh.place());
        expected += static_cast<double>(1 << rank);
    }
    EXPECT_EQ(group.size(), members);
    EXPECT_EQ(group.rank(), before);
    EXPECT_EQ(sum_over(group, static_cast<double>(1 << mesh.all()->rank())), expected);
}

TEST(Mesh, EveryGroupOfEveryLayout) {
    World& world = World::current();
    const int64_t size = world.size();
    for (int64_t tp = 1; tp <= size; ++tp)
        for (int64_t cp = 1; tp * cp <= size; ++cp)
            for (int64_t pp = 1; tp * cp * pp <= size; ++pp) {
                if (size % (tp * cp * pp) != 0) continue;
                const Layout layout = make_layout(size, tp, cp, pp);
                const Mesh mesh(world.communicator(), layout);
                const Coordinates me = mesh.place();
                EXPECT_FALSE(mesh.tp_spans_hosts());
                using C = const Coordinates&;
                expect_group(mesh, *mesh.tp(),
                             [&](C c) { return c.cp == me.cp && c.dp == me.dp && c.pp == me.pp; });
                expect_group(mesh, *mesh.cp(),
                             [&](C c) { return c.tp == me.tp && c.dp == me.dp && c.pp == me.pp; });
                expect_group(mesh, *mesh.dp(),
                             [&](C c) { return c.tp == me.tp && c.cp == me.cp && c.pp == me.pp; });
                expect_group(mesh, *mesh.pp(),
                             [&](C c) { return c.tp == me.tp && c.cp == me.cp && c.dp == me.dp; });
                expect_group(mesh, *mesh.replicas(), [&](C c) { return c.tp == me.tp && c.pp == me.pp; });
                EXPECT_EQ(mesh.ends() != nullptr, pp > 1 && (mesh.first_stage() || mesh.last_stage()));
                if (mesh.ends())
                    expect_group(mesh, *mesh.ends(), [&](C c) {
                        return c.tp == me.tp && c.cp == me.cp && c.dp == me.dp &&
                               (c.pp == 0 || c.pp == pp - 1);
                    });
                expect_group(mesh, *mesh.model(), [&](C c) { return c.cp == me.cp && c.dp == me.dp; });
            }
    EXPECT_THROW(Mesh(world.communicator(), {.tp = size + 1}), Error);
}

}  // namespace
}  // namespace levin
