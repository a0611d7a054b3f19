// The ranks of a job as a grid with four axes: pipeline stages, data, context and tensor parallelism.
//
// tp runs fastest, then cp, dp, pp, over the ranks ordered by host: a tp group, which talks most, stays on
// one host whenever the ranks per host are a multiple of it.
#pragma once

#include <memory>
#include <string>

#include "parallel/communicator.h"

namespace levin {

// Extents of the axes (a layout), or one rank's place on them (coordinates).
struct Layout {
    int64_t pp = 1, dp = 1, cp = 1, tp = 1;
    int64_t ranks() const { return pp * dp * cp * tp; }
    bool operator==(const Layout&) const = default;
};
using Coordinates = Layout;

// "dp 2 x tp 4"; "1 rank" when every axis is 1.
std::string to_string(const Layout& layout);

// The layout of `ranks` ranks; data parallelism takes what tp, cp and pp leave. Throws Error(input) when
// tp * cp * pp does not divide `ranks`, naming the nearest settings that do.
Layout make_layout(int64_t ranks, int64_t tp, int64_t cp, int64_t pp);

// Place number `index` of the grid.
Coordinates coordinates_of(const Layout& layout, int64_t index);
int64_t index_of(const Layout& layout, const Coordinates& place);

// In which groups copy engines carry what is large (CopyEngines), where they can.
enum class CopyEngineGroups { none, pairs, all };

// How the groups talk.
struct MeshOptions {
    CopyEngineGroups copy_engines = CopyEngineGroups::pairs;
    // Inside each host and then between hosts, where these have equal numbers of ranks.
    bool hierarchical = true;
};

// The communicators of one rank's axes. Each group is ordered along its axis, so that a rank of it equals the
// coordinate.
class Mesh {
public:
    // Collective over `all`. Throws Error(input) when the layout needs another number of ranks.
    Mesh(std::shared_ptr<Communicator> all, const Layout& layout, const MeshOptions& options = {});

    const Layout& layout() const { return layout_; }
    const Coordinates& place() const { return place_; }
    // Of a rank of all(): ranks are placed host by host.
    const Coordinates& place_of(int rank) const { return places_[static_cast<size_t>(rank)]; }

    const std::shared_ptr<Communicator>& all() const { return all_; }
    const std::shared_ptr<Communicator>& tp() const { return tp_; }
    const std::shared_ptr<Communicator>& cp() const { return cp_; }
    const std::shared_ptr<Communicator>& dp() const { return dp_; }
    const std::shared_ptr<Communicator>& pp() const { return pp_; }
    // dp x cp, dp slowest: the ranks that hold the same parameters and sum their gradients.
    const std::shared_ptr<Communicator>& replicas() const { return replicas_; }
    // pp x tp: the ranks that hold one whole model between them.
    const std::shared_ptr<Communicator>& model() const { return model_; }

    // The first and the last stage of each pipeline, which both hold a tied embedding; null between them and
    // without a pipeline.
    const std::shared_ptr<Communicator>& ends() const { return ends_; }

    bool first_stage() const { return place_.pp == 0; }
    bool last_stage() const { return place_.pp == layout_.pp - 1; }
    // A tp group that reaches over a network works, but slowly.
    bool tp_spans_hosts() const { return tp_spans_hosts_; }

private:
    Layout layout_;
    Coordinates place_;
    std::vector<Coordinates> places_;  // by rank of all_
    std::shared_ptr<Communicator> all_, tp_, cp_, dp_, pp_, replicas_, model_, ends_;
    bool tp_spans_hosts_ = false;
};

}  // namespace levin
