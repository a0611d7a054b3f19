#include "parallel/world.h"

#include <fmt/format.h>
#include <omp.h>

#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <sstream>

#include "kernels/device_memory.h"
#include "parallel/agreement.h"
#include "parallel/host.h"
#include "parallel/mpi/mpi_communicator.h"
#include "parallel/mpi/runtime.h"
#include "parallel/nccl/nccl_communicator.h"
#include "parallel/self.h"
#include "parallel/timeout.h"

namespace levin {

namespace {

World* living = nullptr;

std::string joined(const std::vector<int>& numbers) {
    std::string text;
    for (int number : numbers) text += std::to_string(number) + ' ';
    return text;
}

std::vector<int> parsed(const std::string& text) {
    std::istringstream stream(text);
    std::vector<int> numbers;
    for (int number = 0; stream >> number;) numbers.push_back(number);
    return numbers;
}

}  // namespace

double communication_timeout() {
    static const double seconds = [] {
        const char* text = std::getenv("LEVIN_COMMUNICATION_TIMEOUT");
        if (!text || !*text) return 1800.0;
        char* end = nullptr;
        const double value = std::strtod(text, &end);
        LEVIN_REQUIRE(*end == '\0' && value > 0, "environment",
                      "LEVIN_COMMUNICATION_TIMEOUT is \"{}\", must be a number of seconds above 0", text);
        return value;
    }();
    return seconds;
}

namespace {

// OMP_NUM_THREADS, "" where it says nothing.
std::string environment_threads() {
    const char* text = std::getenv("OMP_NUM_THREADS");
    return text ? text : "";
}

// The OpenMP library goes on with every core where it cannot read the number, on each rank of a host.
void check_environment_threads() {
    const std::string text = environment_threads();
    if (text.empty()) return;
    char* end = nullptr;
    const long threads = std::strtol(text.c_str(), &end, 10);  // a list, one number for each level, is fine
    LEVIN_REQUIRE(
        threads >= 1 && threads <= 4096 && (*end == '\0' || *end == ',' || *end == ' '), "environment",
        "OMP_NUM_THREADS is \"{}\", must be a number from 1 to 4096; without it the ranks of a host "
        "share its cores",
        text);
}

}  // namespace

World::World() {
    LEVIN_CHECK(!living, "world", "a second World in one process");
    if (mpi::started_by_mpirun()) {
        mpi::initialize();
        // Streams that share a hardware queue wait for each other; a rank has a few for every group it is in.
        setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0);
        uses_mpi_ = true;
        communication_timeout();  // refuse a wrong value now
        all_ = mpi::make_world_communicator();
        if (all_->size() > 1) all_ = routed_ = std::make_shared<RoutedCommunicator>(all_);
        host_ = mpi::make_host_communicator();
        if (mpi::bound_by_default()) clear_affinity();
    } else {
        all_ = make_self_communicator("world");
        host_ = make_self_communicator("world.host");
    }
    const std::vector<int> cpus = usable_cpus();
    std::vector<std::vector<int>> masks;
    for (const std::string& text : gather_texts(*host_, joined(cpus))) masks.push_back(parsed(text));
    place_ = {host_name(), host_->rank(), host_->size(), static_cast<int>(cpus.size()),
              threads_for(masks, static_cast<size_t>(host_->rank()), cpu_quota())};
    if (environment_threads().empty()) omp_set_num_threads(place_.threads);
    if (all_->size() > 1) watchdog_ = std::make_unique<Watchdog>(*all_, place_.host);
    living = this;
}

World::~World() {
    living = nullptr;
    if (!uses_mpi_ || finished_) return;
    // On the way out of a failure MPI_Finalize would wait for ranks that know nothing of it; and nothing is
    // left to do about its own failure.
    if (std::uncaught_exceptions() > 0) return;
    try {
        finish();
    } catch (const std::exception& error) {
        std::fprintf(stderr, "levin: rank %d: %s\n", rank(), error.what());
    }
}

World& World::current() {
    LEVIN_CHECK(living, "world", "no World yet; main() makes it");
    return *living;
}

std::string World::mpi_version() const { return mpi::library_version(); }

std::vector<RankPlace> World::places() const {
    const std::string mine = joined({place_.local_rank, place_.local_size, place_.cores, place_.threads});
    std::vector<RankPlace> places;
    for (const std::string& text : gather_texts(*all_, mine + place_.host)) {
        RankPlace place;
        std::istringstream stream(text);
        stream >> place.local_rank >> place.local_size >> place.cores >> place.threads >> std::ws;
        std::getline(stream, place.host);
        places.push_back(place);
    }
    return places;
}

Device World::device(DeviceType type) {
    if (type == DeviceType::cpu) return {};
    if (!gpu_) assign_gpu();
    return *gpu_;
}

void World::assign_gpu() {
    std::string why;
    const int count = kernels::cuda_device_count(&why), ranks = place_.local_size;
    LEVIN_REQUIRE(count > 0, "device",
                  "a GPU was asked for on {}, but {}; use --device cpu (trainer.device=cpu)", place_.host,
                  why);
    LEVIN_REQUIRE(count == 1 || count >= ranks, "device",
                  "{} ranks on {}, which has {} GPUs: each rank needs its own; start at most {} there", ranks,
                  place_.host, count, count);
    const Device mine{DeviceType::cuda, count == 1 ? 0 : place_.local_rank};
    const std::vector<std::string> gpus = gather_texts(*host_, nccl::gpu_identity(mine.index));
    for (size_t r = 0; r < gpus.size(); ++r)
        LEVIN_REQUIRE(
            static_cast<int>(r) == host_->rank() || gpus[r] != gpus[host_->rank()], "device",
            "{} ranks on {} share the GPU {}: each needs its own; start fewer ranks there, or let each "
            "see another one (CUDA_VISIBLE_DEVICES)",
            ranks, place_.host, gpus[r]);
    if (place_.local_size > 1) {
        // The cores of the GPU's own NUMA node: copies between host and GPU stay beside it.
        std::string id = gpus[static_cast<size_t>(host_->rank())];
        for (char& c : id) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
        std::string list;
        if (std::getline(std::ifstream("/sys/bus/pci/devices/" + id + "/local_cpulist"), list))
            stay_on(parse_cpu_list(list), place_.threads);
    }
    if (routed_) routed_->connect(mine);
    gpu_ = mine;
}

void World::finish() {
    if (finished_) return;
    finished_ = true;
    if (!uses_mpi_) return;
    all_->barrier();  // has a time limit and gives the core away, unlike MPI_Finalize
    watchdog_.reset();
    host_.reset();
    routed_.reset();
    const std::shared_ptr<Communicator> last = make_self_communicator("world");
    all_ = last;
    mpi::finalize();
}

namespace {

int report(const World* world, const std::string& what, int status) {
    std::string text = what;
    if (world && world->size() > 1) {
        // Ends the job with one message about the first failure of all, unless rank 0 cannot be reached.
        if (world->watchdog()) world->watchdog()->fail(what, status);
        text =
            fmt::format("rank {} of {} on {}: {}", world->rank(), world->size(), world->place().host, what);
        Watchdog::keep_message(text, status);
    }
    std::fprintf(stderr, "levin: %s\n", text.c_str());
    std::fflush(stderr);
    return status;
}

// Runs one stage and turns what it throws into a status.
int guarded(const World* world, const std::function<int()>& stage) {
    try {
        return stage();
    } catch (const Error& error) {
        return report(world, error.what(), error.exit_status());
    } catch (const std::bad_alloc&) {
        return report(world, "[memory] the machine has no memory left", 1);
    } catch (const std::exception& error) {
        return report(world, error.what(), 1);
    }
}

}  // namespace

int run_ranks(const std::function<int(World&)>& body) {
    std::unique_ptr<World> world;
    int status = guarded(nullptr, [&] {
        world = std::make_unique<World>();
        return 0;
    });
    if (!world) return status;
    status = guarded(world.get(), [&] {
        check_environment_threads();
        return body(*world);
    });
    if (status == 0)
        status = guarded(world.get(), [&] {
            world->finish();
            return 0;
        });
    if (status != 0 && world->uses_mpi()) {
        std::fflush(nullptr);
        if (world->watchdog()) world->watchdog()->leave(status);
        world->all().abort(status);
    }
    return status;
}

}  // namespace levin
