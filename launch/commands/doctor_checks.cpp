#include "launch/commands/doctor_checks.h"

#include <cblas.h>
#include <dlfcn.h>
#include <dnnl.h>
#include <fcntl.h>
#include <fmt/core.h>
#include <omp.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>
#include <thread>

#include "core/random.h"
#include "core/tensor.h"
#include "kernels/device_memory.h"
#include "kernels/gemm.h"
#include "parallel/host.h"
#include "parallel/world.h"

namespace levin {

namespace {

constexpr double kGiB = 1024.0 * 1024 * 1024;

double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// The first "key : value" of a file such as /proc/cpuinfo; empty when there is none.
std::string field(const char* path, const std::string& key) {
    std::ifstream file(path);
    for (std::string line; std::getline(file, line);) {
        if (line.rfind(key, 0) != 0) continue;
        const size_t colon = line.find(':');
        const size_t value = colon == std::string::npos ? colon : line.find_first_not_of(" \t", colon + 1);
        if (value != std::string::npos) return line.substr(value);
    }
    return {};
}

std::optional<double> kibibytes(const std::string& key) {
    std::istringstream text(field("/proc/meminfo", key));
    double value = 0;
    return text >> value ? std::optional(value * 1024) : std::nullopt;
}

// What the container allows, cgroup v2 or v1; nothing when unlimited.
std::optional<double> memory_limit() {
    for (const char* path : {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
        std::ifstream file(path);
        double bytes = 0;
        if (file >> bytes && bytes > 0 && bytes < 1e15) return bytes;
    }
    return std::nullopt;
}

std::string environment(const char* name) {
    const char* value = std::getenv(name);
    return value ? value : "";
}

bool in_path(const std::string& program) {
    std::istringstream folders(environment("PATH"));
    for (std::string folder; std::getline(folders, folder, ':');)
        if (access((folder + "/" + program).c_str(), X_OK) == 0) return true;
    return false;
}

bool can_load(const char* library) {
    void* handle = dlopen(library, RTLD_LAZY | RTLD_LOCAL);
    if (handle) dlclose(handle);
    return handle != nullptr;
}

// GFLOP/s of C = A B^T, as a linear layer computes it, over about `seconds`.
double gemm_rate(DType dtype, double seconds) {
    constexpr int64_t n = 1024;
    Tensor a = Tensor::empty({n, n}, dtype), b = Tensor::empty({n, n}, dtype),
           c = Tensor::empty({n, n}, dtype);
    fill_normal(a, Random(1, "a"), 1);
    fill_normal(b, Random(1, "b"), 1);
    const kernels::Gemm product{.transpose_b = true,
                                .m = n,
                                .n = n,
                                .k = n,
                                .dtype = dtype,
                                .c_dtype = dtype,
                                .a = a.data(),
                                .lda = n,
                                .b = b.data(),
                                .ldb = n,
                                .c = c.data(),
                                .ldc = n};
    kernels::gemm(a.stream(), product);  // the first call builds the kernel
    double best = 0;
    for (const double end = now() + seconds; now() < end;) {
        const double start = now();
        kernels::gemm(a.stream(), product);
        best = std::max(best, 2.0 * n * n * n / (now() - start) * 1e-9);
    }
    return best;
}

}  // namespace

std::string to_string(Health health) {
    return health == Health::ok ? "ok" : health == Health::warn ? "warn" : "missing";
}

Finding check_processor() {
    Finding finding{"processor", Health::ok, field("/proc/cpuinfo", "model name"), ""};
    if (finding.value.empty()) finding.value = "unknown model";
    const std::string flags = fmt::format(" {} ", field("/proc/cpuinfo", "flags"));
    const auto has = [&](const std::string& flag) {
        return flags.find(fmt::format(" {} ", flag)) != std::string::npos;
    };
    std::string sets;
    for (const auto& [flag, name] : {std::pair{"avx2", "AVX2"},
                                     {"avx512f", "AVX-512"},
                                     {"avx512_bf16", "AVX-512 bf16"},
                                     {"amx_bf16", "AMX bf16"}})
        if (has(flag)) sets += (sets.empty() ? "" : ", ") + std::string(name);
    const std::vector<int> cpus = usable_cpus();
    finding.value += fmt::format("; {} of {} CPUs usable", cpus.size(), std::thread::hardware_concurrency());
    if (const auto quota = cpu_quota()) finding.value += fmt::format(", container limit {:.1f}", *quota);
    finding.value += fmt::format("; {}", sets.empty() ? "no AVX2" : sets);
#ifdef __AVX512F__
    const bool built_wide = true;
#else
    const bool built_wide = false;
#endif
    if (!has("avx2")) {
        finding.health = Health::warn;
        finding.advice =
            "the CPU kernels are made for AVX2 and will be slow here; use another machine or a GPU";
    } else if (has("avx512f") && !built_wide) {
        finding.health = Health::warn;
        finding.advice = "this program was built without AVX-512; build it here (launch/build) to use it";
    }
    return finding;
}

Finding check_memory() {
    const double total = kibibytes("MemTotal").value_or(0), available = kibibytes("MemAvailable").value_or(0);
    const double limit = memory_limit().value_or(total), usable = std::min(available, limit);
    Finding finding{"memory", Health::ok,
                    fmt::format("{:.1f} GiB, {:.1f} GiB available", total / kGiB, available / kGiB), ""};
    if (limit < total) finding.value += fmt::format(", container limit {:.1f} GiB", limit / kGiB);
    if (usable < 3 * kGiB) {
        finding.health = Health::warn;
        finding.advice =
            "building needs 1.5 GiB a compiler and training a small model 1 GiB; close other programs";
    }
    return finding;
}

Finding check_threads() {
    const RankPlace& place = World::current().place();
    const int threads = omp_get_max_threads();
    const std::string set = environment("OMP_NUM_THREADS");
    Finding finding{"threads", Health::ok,
                    fmt::format("{} of {} cores{}", threads, place.cores,
                                set.empty() ? "" : fmt::format(" (OMP_NUM_THREADS={})", set)),
                    ""};
    if (threads > place.threads) {
        finding.health = Health::warn;
        finding.advice = fmt::format(
            "more threads than this rank's share of the cores, {}: they wait for each "
            "other; set trainer.threads or OMP_NUM_THREADS lower",
            place.threads);
    } else if (threads * 2 <= place.threads) {
        finding.health = Health::warn;
        finding.advice = fmt::format("{} cores stay idle; unset OMP_NUM_THREADS", place.threads - threads);
    }
    return finding;
}

Finding check_matrix_products() {
    const dnnl_version_t* version = dnnl_version();
    const double f32 = gemm_rate(DType::f32, 0.5), half = gemm_rate(DType::bf16, 0.5);
    std::istringstream config(openblas_get_config());
    std::string blas, number;
    config >> blas >> number;
    Finding finding{
        "matrix products", Health::ok,
        fmt::format("f32 {:.0f} GFLOP/s, bf16 {:.0f} GFLOP/s with {} threads (oneDNN {}.{}.{}, f64 by {} {})",
                    f32, half, omp_get_max_threads(), version->major, version->minor, version->patch, blas,
                    number),
        ""};
    if (half < f32) {
        finding.health = Health::warn;
        finding.advice = "bf16 is no faster than f32 on this processor: keep trainer.precision=f32 here";
    }
    return finding;
}

Finding check_mpi() {
    const World& world = World::current();
    Finding finding{"mpi", Health::ok, world.mpi_version(), ""};
    if (world.uses_mpi())
        finding.value += fmt::format("; rank {} of {} under mpirun", world.rank(), world.size());
    else
        finding.value += "; not under mpirun: one process";
    if (!in_path("mpirun")) {
        finding.health = Health::missing;
        finding.advice = "mpirun, which starts several ranks, is not in PATH: install openmpi-bin";
    }
    return finding;
}

std::vector<Finding> check_gpus() {
    const bool built = kernels::built_with_cuda();
    const bool present = std::filesystem::exists("/proc/driver/nvidia/version");
    std::string why;
    const int count = kernels::cuda_device_count(&why);
    std::vector<Finding> findings;
    findings.push_back(
        {"cuda",
         built     ? Health::ok
         : present ? Health::warn
                   : Health::missing,
         built ? "built in" : "not built in",
         built     ? ""
         : present ? "there is an NVIDIA driver here: install the CUDA toolkit and run launch/build again"
                   : "nothing to do: training runs on the CPU"});
    if (count == 0)
        findings.push_back({"gpu", Health::missing, why.empty() ? "none" : why,
                            present && built ? "check nvidia-smi and CUDA_VISIBLE_DEVICES"
                                             : "nothing to do: training runs on the CPU"});
    for (int i = 0; i < count; ++i) {
        const kernels::DeviceInfo info = kernels::cuda_device_info(i);
        const auto free = static_cast<double>(info.free_bytes), total = static_cast<double>(info.total_bytes);
        Finding finding{
            fmt::format("gpu {}", i), Health::ok,
            fmt::format("{}, {:.1f} of {:.1f} GiB free, compute capability {}, {} multiprocessors", info.name,
                        free / kGiB, total / kGiB, info.compute_capability, info.multiprocessors),
            ""};
        if (free < 0.8 * total) {
            finding.health = Health::warn;
            finding.advice = "another program holds memory of this GPU; see nvidia-smi";
        }
        findings.push_back(std::move(finding));
    }
    if (!built) return findings;
    const auto library = [&](const char* name, std::initializer_list<const char*> files, const char* advice) {
        const bool found = std::any_of(files.begin(), files.end(), can_load);
        findings.push_back(
            {name, found ? Health::ok : Health::missing, found ? "found" : "not found", found ? "" : advice});
    };
    library("nccl", {"libnccl.so.2"}, "only for several GPUs: install libnccl2");
    library("cudnn", {"libcudnn.so.9", "libcudnn.so.8"}, "only for softmax attention on GPUs: install cuDNN");
    return findings;
}

Finding check_disk() {
    Finding finding{"disk", Health::ok, "", ""};
    struct statvfs info {};
    if (statvfs(".", &info) != 0) {
        finding.health = Health::warn;
        finding.value = fmt::format("the current folder: {}", std::strerror(errno));
        finding.advice = "run levin from a folder that exists";
        return finding;
    }
    const double free = static_cast<double>(info.f_bavail) * static_cast<double>(info.f_frsize);
    finding.value =
        fmt::format("{:.1f} GiB free in {}", free / kGiB, std::filesystem::current_path().string());

    std::string name = "./levin-doctor-XXXXXX";
    const int file = mkstemp(name.data());
    if (file < 0) {
        finding.health = Health::warn;
        finding.value += fmt::format("; cannot write: {}", std::strerror(errno));
        finding.advice = "runs and shards need a folder you may write to";
        return finding;
    }
    unlink(name.c_str());  // gone whatever happens
    constexpr size_t block = 4 << 20, blocks = 16;
    std::vector<char> data(block);
    for (size_t i = 0; i < block; ++i)
        data[i] = static_cast<char>(i * 2654435761u >> 13);  // does not compress
    const double start = now();
    bool written = true;
    for (size_t i = 0; i < blocks && written; ++i)
        written = write(file, data.data(), block) == static_cast<ssize_t>(block);
    written = written && fsync(file) == 0;
    const double rate = static_cast<double>(block * blocks) / (now() - start) / 1e6;
    close(file);
    if (!written) {
        finding.health = Health::warn;
        finding.value += fmt::format("; writing 64 MiB failed: {}", std::strerror(errno));
        finding.advice = "make room, or run from another folder";
        return finding;
    }
    finding.value += fmt::format(", writes {:.0f} MB/s", rate);
    if (free < 5 * kGiB || rate < 50) {
        finding.health = Health::warn;
        finding.advice =
            free < 5 * kGiB
                ? "a checkpoint takes 12 bytes a parameter: make room, or set run.folder elsewhere"
                : "checkpoints will be slow: set run.folder to a faster disk";
    }
    return finding;
}

Finding check_shared_memory() {
    struct statvfs info {};
    if (statvfs("/dev/shm", &info) != 0)
        return {"shared memory", Health::warn, "no /dev/shm",
                "ranks of one host talk through it: mount a tmpfs there"};
    const double bytes = static_cast<double>(info.f_bavail) * static_cast<double>(info.f_frsize);
    Finding finding{"shared memory", Health::ok, fmt::format("{:.2f} GiB free in /dev/shm", bytes / kGiB),
                    ""};
    if (bytes < 0.12 * kGiB) {
        finding.health = Health::warn;
        finding.advice = "too little for many ranks or NCCL: start the container with --shm-size=1g or more";
    }
    return finding;
}

Finding check_open_files() {
    rlimit limit{};
    getrlimit(RLIMIT_NOFILE, &limit);
    Finding finding{"open files", Health::ok,
                    limit.rlim_cur == RLIM_INFINITY ? "no limit" : fmt::format("at most {}", limit.rlim_cur),
                    ""};
    if (limit.rlim_cur != RLIM_INFINITY && limit.rlim_cur < 1024) {
        finding.health = Health::warn;
        finding.advice = "many shards need more: ulimit -n 4096";
    }
    return finding;
}

Finding check_terminal() {
    std::string locale;
    for (const char* name : {"LC_ALL", "LC_CTYPE", "LANG"})
        if (locale.empty()) locale = environment(name);
    std::string lower = locale;
    std::transform(lower.begin(), lower.end(), lower.begin(),
                   [](unsigned char c) { return std::tolower(c); });
    const bool utf8 = lower.find("utf-8") != std::string::npos || lower.find("utf8") != std::string::npos;
    const bool terminal = isatty(STDOUT_FILENO) == 1;
    const std::string type = environment("TERM");
    Finding finding{"terminal", Health::ok,
                    fmt::format("{}, locale {}",
                                terminal ? fmt::format("a terminal ({})", type.empty() ? "no TERM" : type)
                                         : std::string("no terminal: plain progress lines"),
                                locale.empty() ? "not set" : locale),
                    ""};
    if (terminal && !utf8) {
        finding.health = Health::warn;
        finding.advice = "generated text may show wrongly: export LC_ALL=C.UTF-8";
    }
    return finding;
}

}  // namespace levin
