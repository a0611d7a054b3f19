#include "trainer/communication.h"

#include <vector>

namespace levin {

namespace {

// The groups of ranks whose time counts for an axis. That of other groups (the norm over a whole model) is in
// the sum alone.
struct Axis {
    std::optional<double> StepMetrics::*exposed;
    std::vector<std::shared_ptr<Communicator>> groups;
};

std::vector<Axis> axes_of(const Mesh& mesh) {
    return {{&StepMetrics::exposed_dp_ms, {mesh.replicas(), mesh.dp()}},
            {&StepMetrics::exposed_tp_ms, {mesh.tp()}},
            {&StepMetrics::exposed_cp_ms, {mesh.cp()}},
            {&StepMetrics::exposed_pp_ms, {mesh.pp(), mesh.ends()}}};
}

}  // namespace

void add_communication(StepMetrics& row, CommunicationMeter& meter, const Mesh& mesh, DeviceType type) {
    const std::map<std::string, CommunicationTime> times = meter.take(type);
    const std::vector<Axis> axes = axes_of(mesh);
    std::vector<double> mine(2 + axes.size());
    for (const auto& [name, time] : times) {
        mine[0] += time.busy_ms;
        mine[1] += time.exposed_ms;
        for (size_t a = 0; a < axes.size(); ++a)
            for (const auto& group : axes[a].groups)
                if (group && group->name() == name) mine[2 + a] += time.exposed_ms;
    }
    const Tensor sums = Tensor::from({static_cast<int64_t>(mine.size())}, mine);
    mesh.all()->all_reduce(sums);
    const auto mean = [&](size_t i) { return sums.data<double>()[i] / mesh.all()->size(); };
    row.comm_ms = mean(0);
    row.exposed_comm_ms = mean(1);
    for (size_t a = 0; a < axes.size(); ++a)
        if (axes[a].groups[0]->size() > 1) row.*axes[a].exposed = mean(2 + a);
}

}  // namespace levin
