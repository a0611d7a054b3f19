// The choice of an algorithm by timing what cuBLASLt proposes. Its first guess is often 3 to 10 % from the
// best of its own list at the shapes of a training step.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>

#include "kernels/backends.h"
#include "kernels/base/error.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/gemm_cache.h"
#include "kernels/cuda/gemm_plan.h"

namespace levin::kernels::cuda {

namespace {

constexpr int kProposals = 12;
constexpr int kRounds = 4;         // in turns, so that a slow moment of the GPU hits all proposals alike
constexpr double kSmall = 1e7;     // FLOP: below, launching costs more than any choice saves
constexpr float kClearly = 0.99f;  // a later proposal must beat the first by 1 %: choices then repeat

class Event {
public:
    Event() { LEVIN_CUDA_CHECK(cudaEventCreate(&handle_)); }
    ~Event() { cudaEventDestroy(handle_); }
    Event(const Event&) = delete;
    void record(cudaStream_t stream) { LEVIN_CUDA_CHECK(cudaEventRecord(handle_, stream)); }
    // Waits for this one.
    float ms_since(const Event& start) const {
        float ms = 0;
        LEVIN_CUDA_CHECK(cudaEventSynchronize(handle_));
        LEVIN_CUDA_CHECK(cudaEventElapsedTime(&ms, start.handle_, handle_));
        return ms;
    }

private:
    cudaEvent_t handle_ = nullptr;
};

// Memory that goes back to the driver at once: a stand-in for the largest gradient must not stay in a pool.
class Transient {
public:
    explicit Transient(size_t bytes) {
        if (bytes > 0 && cudaMalloc(&data_, bytes) != cudaSuccess) {
            cudaGetLastError();
            data_ = nullptr;
        }
    }
    ~Transient() { cudaFree(data_); }
    Transient(const Transient&) = delete;
    void* get() const { return data_; }

private:
    void* data_ = nullptr;
};

// Makes products find their operands in memory rather than in the L2 cache, where the round before left them:
// between two uses of the same weights a step uses all the others. Operands that the cache does not hold need
// no help.
class ColdCache {
public:
    ColdCache(cudaStream_t stream, int device, size_t operands)
        : stream_{{DeviceType::cuda, device}, stream},
          l2_bytes_(l2_bytes(device)),
          memory_(operands < 2 * l2_bytes_ ? 2 * l2_bytes_ : 0) {}
    // Reads other memory: what was written last would go back to memory during the product. Without memory
    // for that the cache stays as it is.
    void clear() const {
        if (!memory_.get()) return;
        const void* const list[] = {memory_.get()};
        const int64_t counts[] = {static_cast<int64_t>(2 * l2_bytes_ / sizeof(float))};
        sum_of_squares(stream_, {1, list, counts, DType::f32, static_cast<double*>(memory_.get())});
    }

private:
    static size_t l2_bytes(int device) {
        int bytes = 0;
        LEVIN_CUDA_CHECK(cudaDeviceGetAttribute(&bytes, cudaDevAttrL2CacheSize, device));
        return static_cast<size_t>(bytes);
    }
    Stream stream_;
    size_t l2_bytes_;
    Transient memory_;
};

// One file per device of the process; made at first use.
struct DeviceCache {
    std::mutex mutex;
    std::unique_ptr<GemmCache> cache;
};

DeviceCache& cache_of(int device) {
    static std::mutex mutex;
    static auto* caches = new std::map<int, DeviceCache>;
    const std::lock_guard lock(mutex);
    DeviceCache& entry = (*caches)[device];
    if (!entry.cache) {
        cudaDeviceProp properties;
        LEVIN_CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
        const std::string version = fmt::to_string(cublasLtGetVersion());
        entry.cache =
            std::make_unique<GemmCache>(gemm_cache_path(properties.name, version), properties.name, version);
    }
    return entry;
}

std::string key_of(const Gemm& g) {
    return fmt::format("{}{} m{} n{} k{} {} to {} strides {} {} {} aligned {} {} {} beta {}",
                       g.transpose_a ? 'T' : 'N', g.transpose_b ? 'T' : 'N', g.m, g.n, g.k,
                       to_string(g.dtype), to_string(g.c_dtype), g.lda, g.ldb, g.ldc, gemm_alignment(g.a),
                       gemm_alignment(g.b), gemm_alignment(g.c), g.beta == 0 ? 0 : 1);
}

uint64_t id_of(const cublasLtMatmulAlgo_t& algorithm) {
    return fingerprint_of(algorithm.data, sizeof algorithm.data);
}

bool is_capturing(cudaStream_t stream) {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    LEVIN_CUDA_CHECK(cudaStreamIsCapturing(stream, &status));
    return status != cudaStreamCaptureStatusNone;
}

// Best time of each proposal in ms; empty when there is no memory to time in.
std::vector<float> times_of(cudaStream_t stream, int device, const Gemm& g, bool c_is_free,
                            const GemmPlan& plan,
                            const std::vector<cublasLtMatmulHeuristicResult_t>& proposals) {
    size_t workspace_bytes = 0;
    for (const auto& proposal : proposals)
        workspace_bytes = std::max(workspace_bytes, proposal.workspaceSize);
    const size_t c_bytes = static_cast<size_t>((g.m - 1) * g.ldc + g.n) * size_of(g.c_dtype);
    const Transient workspace(workspace_bytes), stand_in(c_is_free ? 0 : c_bytes);
    if ((workspace_bytes > 0 && !workspace.get()) || (!c_is_free && !stand_in.get())) return {};
    void* target = c_is_free ? g.c : stand_in.get();
    const auto ab_bytes = static_cast<size_t>(g.m * g.k + g.k * g.n) * size_of(g.dtype);
    const ColdCache cache(stream, device, ab_bytes + c_bytes);
    std::vector<float> best(proposals.size(), 1e30f);
    Event start, stop;
    for (int round = -1; round < kRounds; ++round)  // the first is a warm-up
        for (size_t i = 0; i < proposals.size(); ++i) {
            cache.clear();
            start.record(stream);
            try {
                plan.run(stream, device, g, target, proposals[i].algo, workspace.get(), workspace_bytes);
            } catch (const Error&) {
                continue;  // a proposal that will not run has no time
            }
            stop.record(stream);
            const float ms = stop.ms_since(start);
            if (round >= 0) best[i] = std::min(best[i], ms);
        }
    return best;
}

}  // namespace

void choose_algorithm(cudaStream_t stream, int device, const Gemm& g, bool c_is_free, GemmPlan& plan) {
    const double flops = 2.0 * static_cast<double>(g.m) * static_cast<double>(g.n) * static_cast<double>(g.k);
    const bool worth_it = gemm_tuning_enabled() && flops >= kSmall;
    const auto proposals = plan.proposals(device, g, worth_it ? kProposals : 1);
    size_t chosen = 0;
    plan.tuning = {.proposals = static_cast<int>(proposals.size())};
    if (worth_it && proposals.size() > 1) {
        DeviceCache& cache = cache_of(device);
        const std::lock_guard lock(cache.mutex);
        const std::string key = key_of(g);
        const uint64_t remembered = cache.cache->find(key);
        const auto found = std::find_if(proposals.begin(), proposals.end(), [&](const auto& proposal) {
            return id_of(proposal.algo) == remembered;
        });
        if (found != proposals.end()) {
            chosen = static_cast<size_t>(found - proposals.begin());
            plan.tuning.from_file = true;
        } else if (!is_capturing(stream)) {
            const std::vector<float> times = times_of(stream, device, g, c_is_free, plan, proposals);
            if (!times.empty()) {
                const auto fastest = std::min_element(times.begin(), times.end());
                if (*fastest < times[0] * kClearly) chosen = static_cast<size_t>(fastest - times.begin());
                plan.tuning.first_ms = times[0];
                plan.tuning.chosen_ms = times[chosen];
                cache.cache->store(key, id_of(proposals[chosen].algo));
            }
        }
    }
    plan.tuning.chosen = static_cast<int>(chosen);
    plan.algorithm = proposals[chosen].algo;
    plan.workspace = proposals[chosen].workspaceSize;
}

}  // namespace levin::kernels::cuda
