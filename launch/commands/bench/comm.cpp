// What collectives reach on each group of ranks: bus bandwidth by size, on GPUs beside what NCCL reaches
// alone.
//
// Bus bandwidth is the data rate of the busiest link, whatever the number of ranks R: bytes / seconds times
// 2 (R-1)/R for all_reduce, (R-1)/R for all_gather and reduce_scatter (bytes of the whole), 1 for broadcast
// and messages around a ring.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "kernels/device_memory.h"
#include "launch/commands/bench/bench.h"
#include "launch/commands/options.h"
#include "launch/commands/values.h"
#include "parallel/agreement.h"
#include "parallel/mesh.h"
#include "parallel/world.h"

namespace levin::bench {

namespace {

struct Options {
    Common common;
    std::vector<double> mib = {0.001, 0.0625, 1, 16, 64};
    int64_t tp = 1, cp = 1, pp = 1, repeats = 5;
};

struct Buffers {
    Tensor whole, part, other;
    Tensor exposed_whole, exposed_part;  // peers read them where they lie, if they can
};

struct Collective {
    const char* name;
    NcclCall alone;
    std::function<void(Communicator&, const Buffers&)> run;
    double (*factor)(double ranks);
    Tensor Buffers::*exposed = nullptr;  // what it needs exposed
    size_t least_bytes = 0;              // of that: with less it goes another way
};

const std::vector<Collective>& collectives() {
    static const auto most = [](double ranks) { return (ranks - 1) / ranks; };
    static const std::vector<Collective> all = {
        {"all_reduce", NcclCall::all_reduce, [](Communicator& c, const Buffers& b) { c.all_reduce(b.whole); },
         [](double ranks) { return 2 * most(ranks); }},
        {"reduce_scatter", NcclCall::reduce_scatter,
         [](Communicator& c, const Buffers& b) { c.reduce_scatter(b.whole, b.part); },
         [](double ranks) { return most(ranks); }},
        {"all_gather", NcclCall::all_gather,
         [](Communicator& c, const Buffers& b) { c.all_gather(b.part, b.whole); },
         [](double ranks) { return most(ranks); }},
        {"broadcast", NcclCall::none, [](Communicator& c, const Buffers& b) { c.broadcast(b.whole, 0); },
         [](double) { return 1.0; }},
        {"ring message", NcclCall::none,
         [](Communicator& c, const Buffers& b) {
             c.group([&] {
                 c.send(b.whole, (c.rank() + 1) % c.size());
                 c.recv(b.other, (c.rank() + c.size() - 1) % c.size());
             });
         },
         [](double) { return 1.0; }},
        {"all_reduce, exposed", NcclCall::none,
         [](Communicator& c, const Buffers& b) { c.all_reduce(b.exposed_whole); },
         [](double ranks) { return 2 * most(ranks); }, &Buffers::exposed_whole, size_t{4} << 20},
        {"all_gather, exposed", NcclCall::none,
         [](Communicator& c, const Buffers& b) { c.all_gather(b.exposed_part, b.whole); },
         [](double ranks) { return most(ranks); }, &Buffers::exposed_part, size_t{1} << 20}};
    return all;
}

// Median seconds of one call, the slowest rank's: several calls in a row are timed at once, so that starting
// them is hidden where it can be.
double seconds_per_call(Communicator& ranks, const Stream& stream, const std::function<void()>& call,
                        int64_t repeats, int64_t in_a_row) {
    call();
    std::vector<double> times;
    for (int64_t i = 0; i < repeats; ++i) {
        kernels::synchronize(stream);
        ranks.barrier();
        const auto start = std::chrono::steady_clock::now();
        for (int64_t j = 0; j < in_a_row; ++j) call();
        kernels::synchronize(stream);
        times.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() /
                        static_cast<double>(in_a_row));
    }
    std::nth_element(times.begin(), times.begin() + repeats / 2, times.end());
    return max_over(ranks, times[static_cast<size_t>(repeats / 2)]);
}

void measure(Communicator& ranks, const Options& options, DType dtype, const Device& device, Table& table) {
    const Stream stream = kernels::default_stream(device);
    for (const double mib : options.mib) {
        const auto wanted = static_cast<int64_t>(mib * (1 << 20) / static_cast<double>(size_of(dtype)));
        const int64_t share = std::max<int64_t>(1, wanted / ranks.size()), count = share * ranks.size();
        const Buffers buffers{Tensor::zeros({count}, dtype, device), Tensor::zeros({share}, dtype, device),
                              Tensor::zeros({count}, dtype, device), Tensor::zeros({count}, dtype, device),
                              Tensor::zeros({share}, dtype, device)};
        const std::shared_ptr<void> whole = ranks.expose({buffers.exposed_whole}),
                                    part = ranks.expose({buffers.exposed_part});
        const auto bytes = static_cast<double>(buffers.whole.bytes());
        const int64_t in_a_row = std::clamp<int64_t>(static_cast<int64_t>(64e6 / bytes), 2, 20);
        for (const Collective& collective : collectives()) {
            if (collective.exposed && (!(collective.exposed == &Buffers::exposed_whole ? whole : part) ||
                                       (buffers.*collective.exposed).bytes() < collective.least_bytes))
                continue;
            const double seconds = seconds_per_call(
                ranks, stream, [&] { collective.run(ranks, buffers); }, options.repeats, in_a_row);
            const double bus = collective.factor(ranks.size()) * bytes / 1e9;
            std::string alone = "-";
            if (device.is_cuda() && collective.alone != NcclCall::none) {
                auto* routed = dynamic_cast<RoutedCommunicator*>(&ranks);
                LEVIN_CHECK(routed, "bench", "{} has no GPUs", ranks.name());
                std::vector<double> times;
                for (int64_t i = 0; i < options.repeats; ++i) {
                    ranks.barrier();
                    times.push_back(
                        routed->seconds_alone(collective.alone, buffers.whole, buffers.part, in_a_row));
                }
                std::nth_element(times.begin(), times.begin() + options.repeats / 2, times.end());
                alone = fmt::format("{:.2f}",
                                    bus / max_over(ranks, times[static_cast<size_t>(options.repeats / 2)]));
            }
            table.add({ranks.name(), fmt::to_string(ranks.size()), collective.name,
                       fmt::format("{:.3f}", bytes / (1 << 20)), fmt::format("{:.1f}", seconds * 1e6),
                       fmt::format("{:.2f}", bus / seconds), alone});
        }
    }
}

void run(const Options& options) {
    World& world = World::current();
    prepare(options.common);
    const DType dtype = parse_float_type(options.common.dtype);
    const Device device = world.device(options.common.device == "cpu" ? DeviceType::cpu : DeviceType::cuda);
    LEVIN_REQUIRE(world.size() > 1, "bench",
                  "there is nobody to talk to: start several ranks, launch/run -n 2 levin bench comm");
    const Mesh mesh(world.communicator(), make_layout(world.size(), options.tp, options.cp, options.pp));
    Table table({"group", "ranks", "collective", "mib", "us", "bus_gb_s", "nccl_alone_gb_s"});
    std::vector<int> sizes;
    for (const std::shared_ptr<Communicator>& group :
         {mesh.all(), mesh.tp(), mesh.cp(), mesh.dp(), mesh.pp(), mesh.replicas()}) {
        // Groups of all ranks are the job itself, unless they talk in another way; the others run side by
        // side, as they do in training.
        const auto* routed = dynamic_cast<const RoutedCommunicator*>(group.get());
        const bool like_all = group->size() == world.size() && !(routed && routed->copy_engines());
        if (group->size() == 1 || (group != mesh.all() && like_all)) continue;
        measure(*group, options, dtype, device, table);
        world.all().barrier();
    }
    if (world.is_root()) table.print(options.common.json);
}

}  // namespace

void add_comm(CLI::App& bench) {
    auto options = std::make_shared<Options>();
    CLI::App* command = bench.add_subcommand("comm", "Bus bandwidth of each collective, by size and group");
    command->footer("Example: launch/run -n 4 levin bench comm --tp 2 --mib 1,16");
    add_common(*command, options->common);
    command->add_option("--mib", options->mib, "Sizes of the whole tensor")
        ->delimiter(',')
        ->check(positive())
        ->capture_default_str();
    for (const auto& [name, value, what] :
         {std::tuple{"--tp", &options->tp, "Ranks of a tensor-parallel group"},
          std::tuple{"--cp", &options->cp, "Ranks of a context-parallel group"},
          std::tuple{"--pp", &options->pp, "Pipeline stages"},
          std::tuple{"--repeats", &options->repeats, "Measurements of which the median counts"}})
        command->add_option(name, *value, what)->check(positive())->capture_default_str();
    command->callback([options] { run(*options); });
}

}  // namespace levin::bench
