// What part of this host's processor a process may use.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace levin {

std::string host_name();
// CPUs in this process's affinity mask, one per physical core where the kernel says which are siblings: two
// kernel threads on one core slow each other down.
std::vector<int> usable_cpus();
// Lets this process run on any CPU of the host again (its container's limits stay in force).
void clear_affinity();
// Share of CPU time that the container grants (cgroup v2 or v1), in cores; nothing when unlimited.
std::optional<double> cpu_quota();

// Threads for one of several processes on a host: a CPU that n of them may use counts 1/n for each; the quota
// is divided evenly. `masks[i]` are the CPUs of process i. At least 1.
int threads_for(const std::vector<std::vector<int>>& masks, size_t mine, std::optional<double> quota);

// "0-3,8" as /sys writes lists of CPUs: {0, 1, 2, 3, 8}. Stops at what it cannot read.
std::vector<int> parse_cpu_list(const std::string& list);
// Keeps this thread, and those it starts, on those of its CPUs that are in `cpus`, unless fewer than `least`
// are.
void stay_on(const std::vector<int>& cpus, int least);

}  // namespace levin
