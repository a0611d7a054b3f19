#include "parallel/mesh.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "kernels/base/error.h"
#include "parallel/agreement.h"
#include "parallel/host.h"

namespace levin {

std::string to_string(const Layout& layout) {
    std::string text;
    const auto axis = [&](const char* name, int64_t extent) {
        if (extent > 1) text += fmt::format("{}{} {}", text.empty() ? "" : " x ", name, extent);
    };
    axis("pp", layout.pp);
    axis("dp", layout.dp);
    axis("cp", layout.cp);
    axis("tp", layout.tp);
    return text.empty() ? "1 rank" : text;
}

namespace {

// Of all tp, cp, pp whose product divides `ranks`, the ones with the smallest change in ratio.
Layout nearest_layout(int64_t ranks, int64_t tp, int64_t cp, int64_t pp) {
    Layout best;
    double least = HUGE_VAL;
    const auto change = [](int64_t a, int64_t b) {
        return std::abs(std::log(static_cast<double>(a) / static_cast<double>(b)));
    };
    for (int64_t t = 1; t <= ranks; ++t) {
        if (ranks % t != 0) continue;
        for (int64_t c = 1; t * c <= ranks; ++c) {
            if (ranks % (t * c) != 0) continue;
            for (int64_t p = 1; t * c * p <= ranks; ++p) {
                if (ranks % (t * c * p) != 0) continue;
                const double distance = change(t, tp) + change(c, cp) + change(p, pp);
                if (distance >= least) continue;
                least = distance;
                best = {.pp = p, .dp = ranks / (t * c * p), .cp = c, .tp = t};
            }
        }
    }
    return best;
}

}  // namespace

Layout make_layout(int64_t ranks, int64_t tp, int64_t cp, int64_t pp) {
    LEVIN_CHECK(ranks > 0, "mesh", "{} ranks", ranks);
    LEVIN_REQUIRE(tp > 0 && cp > 0 && pp > 0 && tp <= INT32_MAX && cp <= INT32_MAX && pp <= INT32_MAX,
                  "parallel", "tp {}, cp {}, pp {}: each must be 1 or more", tp, cp, pp);
    // tp * cp fits i64; the third factor may not.
    if (tp * cp <= ranks && tp * cp * pp <= ranks && ranks % (tp * cp * pp) == 0)
        return {.pp = pp, .dp = ranks / (tp * cp * pp), .cp = cp, .tp = tp};
    const Layout near = nearest_layout(ranks, tp, cp, pp);
    fail(Fault::input, "parallel",
         "the job has {} rank{}; parallel.tp={} parallel.cp={} parallel.pp={} needs a multiple of {} x {} x "
         "{}. "
         "Start it with such a number of ranks (mpirun -n), or set parallel.tp={} parallel.cp={} "
         "parallel.pp={} (dp is then {})",
         ranks, ranks == 1 ? "" : "s", tp, cp, pp, tp, cp, pp, near.tp, near.cp, near.pp, near.dp);
}

Coordinates coordinates_of(const Layout& layout, int64_t index) {
    LEVIN_CHECK(index >= 0 && index < layout.ranks(), "mesh", "place {} of {}", index, layout.ranks());
    Coordinates place;
    place.tp = index % layout.tp;
    place.cp = index / layout.tp % layout.cp;
    place.dp = index / (layout.tp * layout.cp) % layout.dp;
    place.pp = index / (layout.tp * layout.cp * layout.dp);
    return place;
}

int64_t index_of(const Layout& layout, const Coordinates& place) {
    return ((place.pp * layout.dp + place.dp) * layout.cp + place.cp) * layout.tp + place.tp;
}

Mesh::Mesh(std::shared_ptr<Communicator> all, const Layout& layout, const MeshOptions& options)
    : layout_(layout), all_(std::move(all)) {
    LEVIN_REQUIRE(
        layout.pp > 0 && layout.dp > 0 && layout.cp > 0 && layout.tp > 0 && layout.ranks() == all_->size(),
        "parallel", "a layout of pp {} x dp {} x cp {} x tp {} on {} ranks", layout.pp, layout.dp, layout.cp,
        layout.tp, all_->size());
    // Ranks in order of (first rank of their host, rank): neighbours share a host also where mpirun dealt the
    // ranks out over the hosts one by one. Rank 0 stays first.
    const std::vector<std::string> hosts = gather_texts(*all_, host_name());
    std::vector<size_t> order(hosts.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    const auto first = [&](size_t i) { return std::find(hosts.begin(), hosts.end(), hosts[i]); };
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return first(a) < first(b); });
    places_.resize(hosts.size());
    for (size_t i = 0; i < order.size(); ++i)
        places_[order[i]] = coordinates_of(layout, static_cast<int64_t>(i));
    for (size_t i = 1; i < order.size(); ++i)
        tp_spans_hosts_ |= places_[order[i]].tp > 0 && hosts[order[i]] != hosts[order[i - 1]];
    place_ = places_[static_cast<size_t>(all_->rank())];

    // Ranks of a group agree on every coordinate but those named; the key orders them along these.
    const auto group = [&](const char* name, bool tp, bool cp, bool dp, bool pp,
                           const GroupOptions& how = {}) {
        const Coordinates fixed{.pp = pp ? 0 : place_.pp,
                                .dp = dp ? 0 : place_.dp,
                                .cp = cp ? 0 : place_.cp,
                                .tp = tp ? 0 : place_.tp};
        return all_->split(static_cast<int>(index_of(layout, fixed)),
                           static_cast<int>(index_of(layout, place_)), name, how);
    };
    const auto copies = [&](CopyEngines use, int64_t ranks) {
        const bool wanted = options.copy_engines == CopyEngineGroups::all ||
                            (options.copy_engines == CopyEngineGroups::pairs && ranks == 2);
        return wanted ? use : CopyEngines::none;
    };
    tp_ = group("tp", true, false, false, false, {.copy_engines = copies(CopyEngines::awaited, layout.tp)});
    cp_ = group("cp", false, true, false, false, {.copy_engines = copies(CopyEngines::gathers, layout.cp)});
    dp_ = group("dp", false, false, true, false);
    pp_ = group("pp", false, false, false, true);
    const auto host = static_cast<int>(first(static_cast<size_t>(all_->rank())) - hosts.begin());
    replicas_ = group("dp_cp", false, true, true, false,
                      {.copy_engines = copies(CopyEngines::overlapped, layout.dp * layout.cp),
                       .host = options.hierarchical ? host : 0});
    model_ = group("pp_tp", true, false, false, true);
    if (layout.pp > 1) {
        const Coordinates fixed{.pp = 0, .dp = place_.dp, .cp = place_.cp, .tp = place_.tp};
        ends_ = all_->split(first_stage() || last_stage() ? static_cast<int>(index_of(layout, fixed)) : -1,
                            static_cast<int>(place_.pp), "pp_ends");
    }
}

}  // namespace levin
