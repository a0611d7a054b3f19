// Passes recorded once and launched again compute what passes launched kernel by kernel do, to the bit.
#include "trainer/step_graph.h"

#include <gtest/gtest.h>

#include <optional>

#include "core/random.h"
#include "tests/device.h"
#include "tests/model/variants.h"
#include "trainer/optimizer.h"
#include "trainer/passes.h"

namespace levin {
namespace {

using test::device;

DeviceBatch random_batch(const ModelConfig& config, int64_t batch, int64_t length, int64_t number) {
    const Random random(static_cast<uint64_t>(number), "batch");
    std::vector<int32_t> ids(static_cast<size_t>(batch * length + 1));
    for (size_t i = 0; i < ids.size(); ++i)
        ids[i] = static_cast<int32_t>(random.bits(i) % static_cast<uint64_t>(config.vocab_size));
    const std::vector<int32_t> inputs(ids.begin(), ids.end() - 1);
    std::vector<int32_t> targets(ids.begin() + 1, ids.end());
    targets[static_cast<size_t>(number % 5)] = -1;  // one that does not count
    return {.ids = Tensor::from({batch * length}, inputs, device()),
            .targets = Tensor::from({batch * length}, targets, device()),
            .layout = {.batch = batch, .length = length},
            .counted = batch * length - 1};
}

struct Setting {
    DType dtype = DType::f32;
    int64_t accumulation = 1;
    Recomputation recomputation = Recomputation::none;
    int64_t slice = 0;
    int64_t batch = 2, length = 24;
    int updates = 6;
    bool disturbed = false;  // evaluations and batches of another shape in between
};

struct Trace {
    std::vector<double> numbers;               // losses and gradient norms
    std::vector<std::vector<double>> weights;  // at the end
    int64_t launches = 0;
    std::string failure;
};

Trace train(const ModelConfig& config, const Setting& setting, bool with_graph) {
    LanguageModel model(config, setting.dtype, device());
    model.initialize(3);
    model.set_recomputation(setting.recomputation, setting.slice);
    Optimizer optimizer(model, {});
    std::optional<StepGraph> graph;
    if (with_graph) graph.emplace(model);
    Trace trace;
    int64_t number = 0;
    const double tokens = static_cast<double>(setting.batch * setting.length * setting.accumulation);
    for (int update = 0; update < setting.updates; ++update) {
        std::vector<DeviceBatch> batches;
        for (int64_t i = 0; i < setting.accumulation; ++i)
            batches.push_back(random_batch(config, setting.batch, setting.length, number++));
        if (setting.disturbed && update % 3 == 2)
            batches.back() = random_batch(config, setting.batch + 1, setting.length - 5, number++);
        for (const Tensor& loss : run_passes(model, batches, {.scale = 1 / tokens, .z_loss = 1e-4}, nullptr,
                                             graph ? &*graph : nullptr))
            trace.numbers.push_back(loss.item());
        optimizer.step(1e-3 * (1 + update));
        trace.numbers.push_back(optimizer.gradient_norm().item());
        if (setting.disturbed) {
            const NoGradient off;
            const DeviceBatch other = random_batch(config, 1, setting.length + 7, 1000);
            trace.numbers.push_back(
                model.loss(other.ids, other.targets, other.layout, {}).loss.value().item());
        }
    }
    for (const Parameter& parameter : model.parameters())
        trace.weights.push_back(parameter.variable.value().to_vector());
    if (graph) {
        trace.launches = graph->launches();
        trace.failure = graph->failure();
    }
    return trace;
}

// Returns how many passes were launched as a whole.
int64_t check(const std::string& name, const ModelConfig& config, const Setting& setting) {
    SCOPED_TRACE(name + " " + to_string(setting.dtype) + ", " + std::to_string(setting.accumulation) +
                 " micro-batches");
    const Trace plain = train(config, setting, false), recorded = train(config, setting, true);
    EXPECT_EQ(recorded.failure, "");
    EXPECT_EQ(recorded.numbers, plain.numbers);
    EXPECT_EQ(recorded.weights, plain.weights);
    return recorded.launches;
}

TEST(StepGraph, EveryModelTrainsToTheSameBits) {
    for (const auto& [name, config] : test::variants(4)) {
        if (config.position == Position::absolute) continue;  // takes positions from the host
        EXPECT_EQ(check(name, config, {}), 5) << "all but the first pass";
        EXPECT_EQ(check(name, config, {.dtype = DType::bf16, .accumulation = 3}), 16)
            << "all but the first of each kind";
    }
}

// Widths at which a GPU takes its fast kernels.
TEST(StepGraph, AtRealWidths) {
    for (const Family family : {Family::tnl, Family::tnl3, Family::transformer}) {
        ModelConfig config = ModelConfig::of(family);
        config.vocab_size = 1000;
        config.hidden_size = 256;
        config.num_layers = 2;
        config.num_heads = 2;
        config.glu_dim = 512;
        const int64_t length = device().is_cpu() ? 40 : 512;
        const Setting setting{
            .dtype = DType::bf16, .accumulation = 2, .batch = 2, .length = length, .updates = 4};
        EXPECT_EQ(check(enum_name(family), config, setting), 6);
    }
}

TEST(StepGraph, WithRecomputation) {
    const ModelConfig config = test::small(4);
    for (const DType dtype : {DType::f64, DType::bf16}) {
        check("selective", config,
              {.dtype = dtype, .accumulation = 2, .recomputation = Recomputation::selective});
        check("full", config, {.dtype = dtype, .accumulation = 2, .recomputation = Recomputation::full});
        check("slices", config,
              {.dtype = dtype, .accumulation = 2, .recomputation = Recomputation::full, .slice = 10});
    }
}

TEST(StepGraph, EvaluationsAndOtherBatchesInBetweenChangeNothing) {
    EXPECT_EQ(check("tnl", test::small(4), {.updates = 9, .disturbed = true}), 5);
    EXPECT_EQ(check("tnl", test::small(4), {.accumulation = 3, .updates = 9, .disturbed = true}), 22);
}

// What a graph cannot hold: on a GPU recording fails, and the passes run as they are, to the same bits.
TEST(StepGraph, AFailedRecordingLosesNothing) {
    ModelConfig config = test::small(4);
    config.position = Position::absolute;
    for (const int64_t accumulation : {1, 3}) {
        const Setting setting{.accumulation = accumulation};
        const Trace plain = train(config, setting, false), recorded = train(config, setting, true);
        EXPECT_EQ(recorded.numbers, plain.numbers);
        EXPECT_EQ(recorded.weights, plain.weights);
        if (device().is_cpu()) continue;  // has nothing to record
        EXPECT_EQ(recorded.launches, 0);
        EXPECT_NE(recorded.failure, "");
        EXPECT_EQ(recorded.failure.find('\n'), std::string::npos);
    }
    // Nothing of it is left behind.
    check("tnl", test::small(4), {});
}

TEST(StepGraph, ItsMemoryIsCountedAndGoesWithIt) {
    const ModelConfig config = test::small(4);
    LanguageModel model(config, DType::f32, device());
    model.initialize(3);
    const auto pass = [&](StepGraph& graph, int64_t number) {
        const Tensor loss = graph.run(random_batch(config, 2, 24, number), {});
        for (Parameter& parameter : model.parameters()) parameter.variable.clear_gradient();
        return loss.item();
    };
    {
        StepGraph first(model);
        pass(first, 1);
    }
    const MemoryStatistics before = memory_statistics(device());
    {
        StepGraph graph(model);
        const double loss = pass(graph, 1);
        EXPECT_EQ(graph.bytes(), 0u) << "the first pass runs as it is";
        EXPECT_EQ(pass(graph, 1), loss);
        const size_t set_aside = graph.bytes();
        EXPECT_GT(set_aside, 0u);
        const MemoryStatistics now = memory_statistics(device());
        EXPECT_EQ(now.in_pools, set_aside);
        EXPECT_EQ(now.live_total, before.live_total + set_aside + 2 * 512) << "and the tokens it reads";
        const auto activations = static_cast<size_t>(MemoryCategory::activations);
        EXPECT_GT(now.live[activations], before.live[activations]);
        for (int i = 0; i < 4; ++i) EXPECT_EQ(pass(graph, 1), loss);
        EXPECT_EQ(graph.bytes(), set_aside);
        EXPECT_EQ(graph.launches(), 5);
        // What passes write to is nobody else's: values made between them stay.
        std::vector<Tensor> others;
        for (int i = 0; i < 40; ++i) others.push_back(Tensor::full({2 * 24, 32}, i, DType::f32, device()));
        EXPECT_EQ(pass(graph, 1), loss);
        for (int i = 0; i < 40; ++i)
            EXPECT_EQ(others[static_cast<size_t>(i)].to_vector(), std::vector<double>(2 * 24 * 32, i));
    }
    EXPECT_EQ(memory_statistics(device()).in_pools, 0u);
    EXPECT_EQ(memory_statistics(device()).live_total, before.live_total);
}

Config configuration(const std::vector<std::string>& settings) {
    return parse_config(
        "model: {family: tnl, vocab_size: 257, num_layers: 6, hidden_size: 512, num_heads: 4, glu_dim: 512}\n"
        "trainer: {sequence_length: 512, micro_batch: 1}\n",
        "test", settings);
}

TEST(StepGraph, PaysForSmallPassesOnOneGpu) {
    const Device gpu{DeviceType::cuda, 0};
    const double peak = 989e12;
    EXPECT_TRUE(wants_step_graph(configuration({}), gpu, 1, peak));
    EXPECT_FALSE(wants_step_graph(configuration({"trainer.step_graph=off"}), gpu, 1, peak));
    EXPECT_FALSE(wants_step_graph(configuration({}), gpu, 2, peak));
    EXPECT_FALSE(wants_step_graph(configuration({}), Device{}, 1, 1e12));
    std::vector<std::string> large{"model.hidden_size=4096", "trainer.sequence_length=8192"};
    EXPECT_FALSE(wants_step_graph(configuration(large), gpu, 1, peak));
    large.push_back("trainer.step_graph=on");
    EXPECT_TRUE(wants_step_graph(configuration(large), gpu, 1, peak));
}

TEST(StepGraph, AnObstacleIsNamedWithTheWayAroundIt) {
    Config config = configuration({"trainer.step_graph=on"});
    EXPECT_EQ(step_graph_obstacle(config, DeviceType::cuda, 1), "");
    const auto names = [&](DeviceType type, int64_t ranks, const std::string& part) {
        const std::string text = step_graph_obstacle(config, type, ranks);
        EXPECT_NE(text.find(part), std::string::npos) << text;
        EXPECT_NE(text.find("auto"), std::string::npos) << text;
        EXPECT_FALSE(wants_step_graph(config, {type, 0}, ranks, 1e15)) << part;
    };
    names(DeviceType::cpu, 1, "the device cuda");
    names(DeviceType::cuda, 4, "4 ranks");
    config.data.packed_documents = true;
    names(DeviceType::cuda, 1, "data.packed_documents=false");
    config.data.packed_documents = false;
    config.model.position = Position::absolute;
    names(DeviceType::cuda, 1, "model.position");
}

}  // namespace
}  // namespace levin
