// What a step spent on communication, for its row of metrics.
#pragma once

#include "parallel/communication_meter.h"
#include "parallel/mesh.h"
#include "trainer/metrics.h"

namespace levin {

// Fills the communication fields of `row` with what `meter` has seen on this kind of device since it was last
// asked: means over the ranks of the mesh. Collective.
void add_communication(StepMetrics& row, CommunicationMeter& meter, const Mesh& mesh, DeviceType type);

}  // namespace levin
