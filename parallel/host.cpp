#include "parallel/host.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <fstream>
#include <sstream>

namespace levin {

namespace {

constexpr int kMostCpus = 8192;
using CpuSet = std::array<cpu_set_t, kMostCpus / CPU_SETSIZE>;

// "0,64" or "0-1": the lowest CPU of the same core that is in the mask.
int first_sibling(int cpu, const CpuSet& set) {
    std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(cpu) +
                       "/topology/thread_siblings_list");
    std::string list;
    if (!std::getline(file, list)) return cpu;
    std::istringstream items(list);
    for (std::string item; std::getline(items, item, ',');) {
        int low = 0, high = 0;
        char dash = 0;
        std::istringstream range(item);
        if (!(range >> low)) return cpu;
        if (!(range >> dash >> high)) high = low;
        for (int i = std::max(low, 0); i <= high && i < kMostCpus; ++i)
            if (CPU_ISSET_S(i, sizeof(set), set.data())) return i;
    }
    return cpu;
}

}  // namespace

std::string host_name() {
    char name[256] = {};
    return gethostname(name, sizeof(name) - 1) == 0 ? name : "unknown host";
}

std::vector<int> usable_cpus() {
    CpuSet set{};
    if (sched_getaffinity(0, sizeof(set), set.data()) != 0) return {0};
    std::vector<int> cpus;
    for (int cpu = 0; cpu < kMostCpus; ++cpu)
        if (CPU_ISSET_S(cpu, sizeof(set), set.data()) && first_sibling(cpu, set) == cpu) cpus.push_back(cpu);
    return cpus;
}

void clear_affinity() {
    CpuSet set{};
    for (int cpu = 0; cpu < kMostCpus; ++cpu) CPU_SET_S(cpu, sizeof(set), set.data());
    // The kernel drops what the host lacks or the container forbids. Failure leaves the mask as it was.
    if (sched_setaffinity(0, sizeof(set), set.data()) != 0) return;
}

std::optional<double> cpu_quota() {
    std::ifstream v2("/sys/fs/cgroup/cpu.max");
    std::string quota;
    double period = 0;
    if (v2 >> quota >> period) {
        if (quota == "max" || period <= 0) return std::nullopt;
        return std::stod(quota) / period;
    }
    std::ifstream v1_quota("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"),
        v1_period("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
    double microseconds = 0;
    if (v1_quota >> microseconds && v1_period >> period && microseconds > 0 && period > 0)
        return microseconds / period;
    return std::nullopt;
}

int threads_for(const std::vector<std::vector<int>>& masks, size_t mine, std::optional<double> quota) {
    double share = 0;
    for (int cpu : masks[mine]) {
        const auto users = std::count_if(masks.begin(), masks.end(), [&](const std::vector<int>& mask) {
            return std::find(mask.begin(), mask.end(), cpu) != mask.end();
        });
        share += 1.0 / static_cast<double>(users);
    }
    if (quota) share = std::min(share, *quota / static_cast<double>(masks.size()));
    return std::max(1, static_cast<int>(std::floor(share + 1e-6)));
}

std::vector<int> parse_cpu_list(const std::string& list) {
    std::vector<int> cpus;
    std::istringstream items(list);
    for (std::string item; std::getline(items, item, ',');) {
        int low = 0, high = 0;
        char dash = 0;
        std::istringstream range(item);
        if (!(range >> low)) break;
        if (!(range >> dash >> high)) high = low;
        for (int cpu = std::max(low, 0); cpu <= high && cpu < kMostCpus; ++cpu) cpus.push_back(cpu);
    }
    return cpus;
}

void stay_on(const std::vector<int>& cpus, int least) {
    CpuSet now{}, next{};
    if (sched_getaffinity(0, sizeof(now), now.data()) != 0) return;
    int count = 0;
    for (const int cpu : cpus)
        if (CPU_ISSET_S(cpu, sizeof(now), now.data())) {
            CPU_SET_S(cpu, sizeof(next), next.data());
            ++count;
        }
    // A refusal leaves the mask as it was, which works as well.
    if (count >= std::max(least, 1)) sched_setaffinity(0, sizeof(next), next.data());
}

}  // namespace levin
