// A model divided over ranks against the model alone: loss and every gradient, in float64, for every family
// and switch.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "core/random.h"
#include "model/language_model.h"
#include "parallel/agreement.h"
#include "parallel/context_parallel/ops.h"
#include "parallel/world.h"
#include "tests/model/compare.h"
#include "tests/model/variants.h"

namespace levin {
namespace {

struct Data {
    int64_t batch, length;
    std::vector<int32_t> ids, targets, borders;
    int64_t counted = 0;
};

Data make_data(int64_t batch, int64_t length, int64_t vocab, std::vector<int32_t> borders) {
    Data data{batch, length, {}, {}, std::move(borders)};
    const Random random(7, "data");
    for (int64_t t = 0; t < batch * length; ++t) {
        const auto bits = random.bits(static_cast<uint64_t>(t));
        data.ids.push_back(static_cast<int32_t>(bits % static_cast<uint64_t>(vocab)));
        data.targets.push_back(
            bits % 11 == 0 ? -1 : static_cast<int32_t>((bits >> 20) % static_cast<uint64_t>(vocab)));
        data.counted += data.targets.back() >= 0;
    }
    return data;
}

Tensor tensor(const std::vector<int32_t>& values) {
    return Tensor::from({static_cast<int64_t>(values.size())}, values);
}

struct Reference {
    double loss;
    std::map<std::string, Tensor> gradients;
};

Reference reference(const ModelConfig& config, const Data& data, const ops::CrossEntropyOptions& options,
                    DType dtype) {
    LanguageModel model(config, dtype, {});
    model.initialize(3);
    ops::TokenLayout layout{.batch = data.batch, .length = data.length};
    if (!data.borders.empty())
        layout = {.batch = 1, .length = data.batch * data.length, .cu_seqlens = tensor(data.borders)};
    const auto loss = model.loss(tensor(data.ids), tensor(data.targets), layout, options);
    backward(loss.loss);
    Reference result{loss.loss.value().item(), {}};
    for (const Parameter& parameter : model.parameters())
        result.gradients[parameter.spec.name] = parameter.variable.gradient();
    return result;
}

void compare(const std::string& name, const ModelConfig& config, const Data& data, const Layout& layout,
             const std::shared_ptr<Communicator>& ranks, Recomputation recomputation = Recomputation::none,
             const TensorParallelOptions& tensor_parallel = {}, int64_t slice_tokens = 0,
             DType dtype = DType::f64) {
    SCOPED_TRACE(fmt::format("{} {} at {}{}{} in {} chunks, slices of {}", name, to_string(dtype),
                             to_string(layout), tensor_parallel.sequence_scatter ? ", scattered" : "",
                             tensor_parallel.two_batches ? ", halves in turn" : "",
                             tensor_parallel.overlap_chunks, slice_tokens));
    // Where a head forgets at once, theta's gradient is a small rest of terms that cancel.
    const double bound = dtype != DType::f64 ? 2e-4 : slice_tokens > 0 ? 1e-9 : 1e-10;
    const ops::CrossEntropyOptions options{
        .scale = 1.0 / static_cast<double>(data.counted), .z_loss = 1e-3, .chunk_tokens = 13};
    const Reference expected = reference(config, data, options, dtype);
    const auto mesh = std::make_shared<Mesh>(ranks, layout);
    LanguageModel model(config, dtype, {}, mesh, 1, tensor_parallel);
    model.initialize(3);
    model.set_recomputation(recomputation, slice_tokens);
    const ops::TokenLayout own =
        chunk_layout(data.batch, data.length, data.borders, static_cast<int>(mesh->place().cp),
                     static_cast<int>(layout.cp), {}, model.slice_tokens());
    const auto loss =
        model.loss(tensor(chunk_of(data.ids, own)), tensor(chunk_of(data.targets, own)), own, options);
    backward(loss.loss);
    context_parallel::finish_exchanges();
    EXPECT_NEAR(sum_over(*mesh->cp(), loss.loss.value().item()), expected.loss,
                (dtype == DType::f64 ? 1e-11 : 1e-6) * std::abs(expected.loss));
    for (Parameter& parameter : model.parameters()) {
        ASSERT_TRUE(parameter.variable.gradient().defined()) << parameter.spec.name;
        const Tensor sum = parameter.variable.gradient().clone();
        mesh->replicas()->all_reduce(sum);
        if (parameter.partial) mesh->tp()->all_reduce(sum);
        const Tensor part =
            take_shard(expected.gradients.at(parameter.spec.name), parameter.shard, sum.dtype(), {});
        EXPECT_LT(test::relative_error(sum, part, 1e-30), bound) << parameter.spec.name;
    }
}

// The first `size` ranks, where there are as many.
std::shared_ptr<Communicator> first_ranks(int64_t size) {
    World& world = World::current();
    return world.communicator()->split(world.rank() < size ? 0 : -1, world.rank(), "part");
}

TEST(Layouts, EveryVariantIsTheSameFunctionAtEveryTensorAndContextSize) {
    for (const Layout& layout :
         {Layout{.tp = 2}, Layout{.cp = 2}, Layout{.cp = 2, .tp = 2}, Layout{.cp = 4}}) {
        const auto ranks = first_ranks(layout.ranks());
        if (!ranks) continue;
        for (const auto& [name, config] : test::variants(4)) {
            compare(name, config, make_data(2, 17, 37, {}), layout, ranks);
            if (layout.cp > 1 && config.position != Position::absolute)
                compare(name + " packed", config, make_data(2, 17, 37, {0, 3, 4, 17, 20, 27, 34}), layout,
                        ranks);
        }
    }
}

TEST(Layouts, PackedDocumentsOfAnyLengthCrossChunkBorders) {
    const auto ranks = first_ranks(4);
    if (!ranks) return;
    const auto variants = test::variants(4);
    for (const auto& [name, config] : variants) {
        if (name != "tnl" && name != "hybrid" && name != "lrpe everywhere") continue;
        const int32_t n = 41;
        for (const auto& borders : std::vector<std::vector<int32_t>>{{0, n},
                                                                     {0, 1, n},
                                                                     {0, n - 1, n},
                                                                     {0, 10, 20, 30, n},
                                                                     {0, 11, 21, 31, n},
                                                                     {0, 25, n},
                                                                     {0, 2, 4, 6, 8, 9, 12, 40, n}})
            compare(name + fmt::format(" {}", borders.size()), config, make_data(1, n, 37, borders),
                    {.cp = 4}, ranks);
    }
}

TEST(Layouts, RecomputationRepeatsTheCollectives) {
    const auto ranks = first_ranks(4);
    if (!ranks) return;
    for (const auto& [name, config] : test::variants(4))
        if (name == "tnl" || name == "tnl3" || name == "hybrid")
            for (const Recomputation mode : {Recomputation::selective, Recomputation::full})
                for (const bool scatter : {false, true})
                    compare(name, config, make_data(1, 19, 37, {}), {.cp = 2, .tp = 2}, ranks, mode,
                            {.sequence_scatter = scatter});
    for (const auto& [name, config] : test::variants(4))  // slice by slice
        if (name == "tnl" || name == "tnl3" || name == "norm layernorm")
            compare(name + " in slices", config, make_data(2, 19, 37, {}), {.tp = 4}, ranks,
                    Recomputation::full, {}, 7);
}

bool has_softmax(const ModelConfig& config) {
    return std::find(config.mixer.begin(), config.mixer.end(), Mixer::softmax) != config.mixer.end();
}

// The slices of a sequence and its chunks at once: each slice is cut over the ranks.
TEST(Layouts, SlicesCutOverRanksAreTheSameFunction) {
    for (const Layout& layout :
         {Layout{.cp = 2}, Layout{.cp = 3}, Layout{.cp = 2, .tp = 2}, Layout{.cp = 4}}) {
        const auto ranks = first_ranks(layout.ranks());
        if (!ranks) continue;
        for (const auto& [name, config] : test::variants(4)) {
            // A rank has 10 to 21 tokens of a row: two rows a slice, or pieces, the last ones of any length.
            for (const int64_t slice : {42, 7, 1}) {
                if (has_softmax(config) ? slice < 42 : slice != 7 && name != "tnl") continue;
                compare(name, config, make_data(3, 41, 37, {}), layout, ranks, Recomputation::full, {},
                        slice);
                if (config.position != Position::absolute)
                    compare(name + " packed", config,
                            make_data(3, 41, 37, {0, 3, 4, 30, 41, 42, 43, 75, 82, 85, 123}), layout, ranks,
                            Recomputation::full, {}, slice);
            }
            if (name == "tnl" || name == "tnl3")  // whole tiles and a rest, a document over all of them
                for (const auto& borders : std::vector<std::vector<int32_t>>{{}, {0, 200, 1100, 1300}})
                    compare(name + " long", config, make_data(1, 1300, 37, borders), layout, ranks,
                            Recomputation::full, {}, 150, DType::f32);
        }
    }
}

// A layer keeps its input alone, as on one rank (tests/model/slices_test.cpp).
TEST(Layouts, SlicesCutOverRanksTakeTheMemoryOfSlicesOnOne) {
    const auto ranks = first_ranks(2);
    if (!ranks) return;
    ModelConfig config = test::small(4);
    config.hidden_size = 32;
    config.glu_dim = 64;
    config.num_layers = 6;
    const int64_t tokens = 8192, slice = 256;  // of a rank
    const auto mesh = std::make_shared<Mesh>(ranks, Layout{.cp = 2});
    LanguageModel model(config, DType::f32, {}, mesh);
    model.initialize(3);
    model.set_recomputation(Recomputation::full, slice);
    const Data data = make_data(1, 2 * tokens, 37, {});
    const ops::TokenLayout own =
        chunk_layout(1, 2 * tokens, {}, static_cast<int>(mesh->place().cp), 2, {}, model.slice_tokens());
    ASSERT_EQ(own.slices->size(), 32u);
    const Tensor ids = tensor(chunk_of(data.ids, own)), targets = tensor(chunk_of(data.targets, own));
    const auto pass = [&] {
        backward(model.loss(ids, targets, own, {.scale = 1e-4, .chunk_tokens = slice}).loss);
        context_parallel::finish_exchanges();
    };
    pass();  // the parameters' gradients exist from now on
    const size_t before = memory_statistics(Device{}).live_total;
    reset_peak_memory(Device{});
    pass();
    const double stream = static_cast<double>(tokens * config.hidden_size) * 4;
    const double peak = static_cast<double>(memory_statistics(Device{}).peak_total - before) / stream;
    EXPECT_GE(peak, 6 + 3);
    EXPECT_LE(peak, 6 + 3 + 0.4);
}

// Chunks of any size are allowed here; a model of this size has messages far below the usual least.
TensorParallelOptions in_chunks(int64_t chunks, bool scatter) {
    return {.sequence_scatter = scatter, .overlap_chunks = chunks, .least_chunk_bytes = 1};
}

TEST(Layouts, EveryVariantIsTheSameFunctionWithTokensScatteredBetweenBlocks) {
    const auto ranks = first_ranks(2);
    if (!ranks) return;
    for (const auto& [name, config] : test::variants(4))
        compare(name, config, make_data(2, 17, 37, {}), {.tp = 2}, ranks, Recomputation::none,
                in_chunks(3, true));
}

TEST(Layouts, AnyNumberOfTokensIsScatteredInAnyNumberOfChunks) {
    const auto ranks = first_ranks(4);
    if (!ranks) return;
    for (const auto& [name, config] : test::variants(4))
        if (name == "tnl3" || name == "position absolute")
            for (const int64_t tokens : {1, 3, 4, 5, 23})  // fewer than ranks: some have padding alone
                for (const int64_t chunks : {1, 2, 5})
                    for (const bool scatter : {false, true})
                        compare(fmt::format("{} tokens, {}", tokens, name), config,
                                make_data(1, tokens, 37, {}), {.tp = 4}, ranks, Recomputation::none,
                                in_chunks(chunks, scatter));
}

TEST(Layouts, HalvesOfABatchInTurnAreTheSameFunction) {
    const auto ranks = first_ranks(2);
    if (!ranks) return;
    const auto halves = [](int64_t chunks) {
        TensorParallelOptions options = in_chunks(chunks, false);
        options.two_batches = true;
        return options;
    };
    for (const auto& [name, config] : test::variants(4)) {
        compare(name, config, make_data(2, 17, 37, {}), {.tp = 2}, ranks, Recomputation::none, halves(1));
        compare(name, config, make_data(3, 17, 37, {}), {.tp = 2}, ranks, Recomputation::selective,
                halves(3));
        if (config.position != Position::absolute)
            compare(name + " packed", config, make_data(2, 17, 37, {0, 3, 4, 19, 27, 34}), {.tp = 2}, ranks,
                    Recomputation::none, halves(1));
    }
    // A batch that has no halves, and layers recomputed as a whole, go in one.
    const ModelConfig config = test::small(4);
    compare("one sequence", config, make_data(1, 17, 37, {}), {.tp = 2}, ranks, Recomputation::none,
            halves(1));
    compare("recomputed", config, make_data(2, 17, 37, {}), {.tp = 2}, ranks, Recomputation::full, halves(1));
}

// While a block of one half runs, the sum of the other half's block is under way.
TEST(Layouts, TheSumOfOneHalfTravelsDuringABlockOfTheOther) {
    const auto ranks = first_ranks(2);
    if (!ranks) return;
    for (const Family family : {Family::tnl, Family::tnl3, Family::transformer})
        for (const bool two_batches : {false, true}) {
            const ModelConfig config = test::small(4, family);
            const auto counting = std::make_shared<test::CountingCommunicator>(ranks);
            const auto mesh = std::make_shared<Mesh>(counting, Layout{.tp = 2});
            LanguageModel model(config, DType::f32, {}, mesh, 1, {.two_batches = two_batches});
            model.initialize(1);
            test::CountingCommunicator& tp = dynamic_cast<test::CountingCommunicator&>(*mesh->tp());
            const Data data = make_data(2, 16, 37, {});
            const NoGradient off;
            tp.forget_order();
            model.hidden(tensor(data.ids), {.batch = 2, .length = 16});
            // s: a sum started, w: waited for. The embedding's, then those of 2 blocks a layer; of the
            // halves, all but the last one start before the other half's is waited for.
            std::string expected = "sw";
            const int64_t sums = 2 * config.num_layers * (two_batches ? 2 : 1);
            if (two_batches) expected += "ss";
            for (int64_t i = two_batches ? 2 : 0; i < sums; ++i) expected += two_batches ? "ws" : "sw";
            if (two_batches) expected += "ww";
            EXPECT_EQ(tp.order(), expected);
        }
}

// On the CPU every element is summed in rank order wherever it lies.
TEST(Layouts, ScatteringAndChunksChangeNoBit) {
    const auto ranks = first_ranks(2);
    if (!ranks) return;
    ModelConfig config = test::small(4);
    const Data data = make_data(1, 701, 37, {});  // chunks of 256 tokens, the last one smaller
    const auto mesh = std::make_shared<Mesh>(ranks, Layout{.tp = 2});
    const auto run = [&](const TensorParallelOptions& options) {
        LanguageModel model(config, DType::f32, {}, mesh, 1, options);
        model.initialize(3);
        const auto loss = model.loss(tensor(data.ids), tensor(data.targets), {.length = 701}, {});
        backward(loss.loss);
        std::vector<std::vector<double>> numbers{loss.loss.value().to_vector()};
        for (const Parameter& parameter : model.parameters())
            numbers.push_back(parameter.variable.gradient().to_vector());
        return numbers;
    };
    const auto expected = run({});
    EXPECT_TRUE(run(in_chunks(3, false)) == expected);
    EXPECT_TRUE(run(in_chunks(1, true)) == expected);
    EXPECT_TRUE(run(in_chunks(3, true)) == expected);
}

// A communicator that counts what goes through it; a group is one launch.
TEST(Layouts, TheCrossRankNormCostsNoCollective) {
    const auto ranks = first_ranks(2);
    if (!ranks) return;
    ModelConfig config = test::small(4);
    const Data data = make_data(2, 8, 37, {});
    const auto launches = [&](int64_t layers, const TensorParallelOptions& options) {
        config.num_layers = layers;
        const auto counting = std::make_shared<test::CountingCommunicator>(ranks);
        const auto mesh = std::make_shared<Mesh>(counting, Layout{.tp = 2});
        LanguageModel model(config, DType::f32, {}, mesh, 1, options);
        model.initialize(1);
        test::CountingCommunicator& tp = dynamic_cast<test::CountingCommunicator&>(*mesh->tp());
        const int before = tp.launches();
        const auto loss = model.loss(tensor(data.ids), tensor(data.targets), {.batch = 2, .length = 8}, {});
        const int forward = tp.launches() - before;
        backward(loss.loss);
        return std::pair(forward, tp.launches() - before - forward);
    };
    const auto check = [&] {
        // Whole between blocks. Forward: the ends of the two blocks; backward: their beginnings. Besides:
        // embedding; of the loss, three numbers a token and the gradient of hidden.
        EXPECT_EQ(launches(2, {}), std::pair(2 * 2 + 3, 2 * 2));
        EXPECT_EQ(launches(3, {}), std::pair(2 * 3 + 3, 2 * 3));
        // Two halves of the batch in turn: twice as many, of half the size.
        EXPECT_EQ(launches(3, {.two_batches = true}), std::pair(4 * 3 + 3, 4 * 3));
        // Scattered. Forward: a gather and a sum for each block; backward the same, and a column-parallel
        // linear gathers its input again. Besides: the embedding both ways, hidden both ways.
        EXPECT_EQ(launches(2, in_chunks(1, true)), std::pair(4 * 2 + 3, 6 * 2 + 2));
        EXPECT_EQ(launches(3, in_chunks(1, true)), std::pair(4 * 3 + 3, 6 * 3 + 2));
        // Two chunks double what goes in chunks: not the numbers of the loss.
        EXPECT_EQ(launches(2, in_chunks(2, true)), std::pair(8 * 2 + 5, 12 * 2 + 4));
    };
    check();
    config.gate = Gate::none;
    check();
    config.mixer = {Mixer::softmax};  // these layers have no norm across ranks
    check();
}

// Context parallelism: one gather of states a layer forward, one backward, of heads * width^2 numbers a rank.
TEST(Layouts, ContextParallelismGathersOnceALayerAndDirection) {
    const auto ranks = first_ranks(2);
    if (!ranks) return;
    ModelConfig config = test::small(4);
    const Data data = make_data(1, 16, 37, {});
    for (const Gate gate : {Gate::multiply, Gate::sigmoid, Gate::none})
        for (const int64_t layers : {2, 3}) {
            config.gate = gate;
            config.num_layers = layers;
            const auto counting = std::make_shared<test::CountingCommunicator>(ranks);
            const auto mesh = std::make_shared<Mesh>(counting, Layout{.cp = 2});
            LanguageModel model(config, DType::f32, {}, mesh);
            model.initialize(1);
            test::CountingCommunicator& cp = dynamic_cast<test::CountingCommunicator&>(*mesh->cp());
            const ops::TokenLayout chunk = chunk_layout(data.batch, data.length, data.borders,
                                                        static_cast<int>(mesh->place().cp), 2, {});
            const int before = cp.launches();
            const auto loss = model.loss(tensor(chunk_of(data.ids, chunk)),
                                         tensor(chunk_of(data.targets, chunk)), chunk, {});
            EXPECT_EQ(cp.launches() - before, layers);
            backward(loss.loss);
            EXPECT_EQ(cp.launches() - before, 2 * layers);
            context_parallel::finish_exchanges();
        }
}

TEST(Layouts, SlicesCutOverRanksGatherOnceASliceLayerAndDirection) {
    const auto ranks = first_ranks(2);
    if (!ranks) return;
    const auto counting = std::make_shared<test::CountingCommunicator>(ranks);
    const auto mesh = std::make_shared<Mesh>(counting, Layout{.cp = 2});
    ModelConfig config = test::small(4);
    LanguageModel model(config, DType::f32, {}, mesh);
    model.initialize(1);
    model.set_recomputation(Recomputation::full, 10);
    const Data data = make_data(1, 50, 37, {});
    const ops::TokenLayout own =
        chunk_layout(1, 50, {}, static_cast<int>(mesh->place().cp), 2, {}, model.slice_tokens());
    test::CountingCommunicator& cp = dynamic_cast<test::CountingCommunicator&>(*mesh->cp());
    const auto launches = static_cast<int>(3 * config.num_layers), before = cp.launches();
    const auto loss =
        model.loss(tensor(chunk_of(data.ids, own)), tensor(chunk_of(data.targets, own)), own, {});
    EXPECT_EQ(cp.launches() - before, launches);  // 20 + 20 + 10 tokens
    backward(loss.loss);
    EXPECT_EQ(cp.launches() - before, 3 * launches);  // forward again
    context_parallel::finish_exchanges();

    config.mixer = {Mixer::softmax, Mixer::lightning};
    LanguageModel hybrid(config, DType::f32, {}, mesh);
    hybrid.initialize(1);
    hybrid.set_recomputation(Recomputation::full, 10);
    try {
        hybrid.hidden(tensor(chunk_of(data.ids, own)), own);
        ADD_FAILURE() << "a softmax layer took a piece of a sequence";
    } catch (const Error& error) {
        EXPECT_EQ(error.fault(), Fault::input);
        EXPECT_NE(std::string(error.what()).find("layer 0 has softmax attention"), std::string::npos);
    }
}

TEST(Layouts, WhatCannotBeDividedIsRefusedWithTheNearest) {
    const auto refusal = [](const ModelConfig& config, const Layout& layout, int64_t virtual_stages) {
        try {
            validate_layout(config, layout, virtual_stages);
        } catch (const Error& error) {
            EXPECT_EQ(error.fault(), Fault::input);
            return std::string(error.what());
        }
        return std::string();
    };
    ModelConfig config = ModelConfig::of(Family::tnl);
    config.num_heads = 8;
    config.glu_dim = 1408;
    config.num_layers = 5;
    EXPECT_EQ(refusal(config, {.pp = 5, .tp = 8}, 1), "");
    EXPECT_EQ(refusal(config, {.pp = 2}, 2), "");
    EXPECT_NE(refusal(config, {.tp = 3}, 1).find("parallel.tp=2 and 4"), std::string::npos);
    EXPECT_NE(refusal(config, {.tp = 16}, 1).find("parallel.tp=8"), std::string::npos);
    EXPECT_NE(refusal(config, {.pp = 6}, 1).find("parallel.pp=5"), std::string::npos);
    EXPECT_NE(refusal(config, {.pp = 2}, 3).find("parallel.pp=2 parallel.virtual_stages=2"),
              std::string::npos);
    EXPECT_NE(refusal(config, {}, 2).find("parallel.virtual_stages is 2"), std::string::npos);
    config.glu_dim = 12;
    EXPECT_NE(refusal(config, {.tp = 8}, 1).find("model.glu_dim"), std::string::npos);
    config = ModelConfig::of(Family::transformer);
    config.num_kv_heads = 2;
    EXPECT_NE(refusal(config, {.tp = 4}, 1).find("parallel.tp=2"), std::string::npos);
}

TEST(Layouts, StagesCountTheHeadAsLayers) {
    ModelConfig config;
    config.num_layers = 16;
    config.hidden_size = 2048, config.num_heads = 16, config.glu_dim = 5632, config.vocab_size = 64000;
    EXPECT_EQ(layers_of_stage(config, 1, 0).last, 16);
    // The head has the weights of 2.4 of these layers.
    EXPECT_EQ(layers_of_stage(config, 2, 0).last, 9);
    for (const int64_t vocab : {64, 64000, 10000000})
        for (const int64_t stages : {2, 3, 4, 8, 16}) {
            config.vocab_size = vocab;
            int64_t next = 0, most = 0;
            for (int64_t stage = 0; stage < stages; ++stage) {
                const StageLayers layers = layers_of_stage(config, stages, stage);
                EXPECT_EQ(layers.first, next);
                EXPECT_GE(layers.last, layers.first + 1) << stages << " stages, stage " << stage;
                if (stage + 1 < stages) most = std::max(most, layers.last - layers.first);
                next = layers.last;
            }
            EXPECT_EQ(next, 16);
            EXPECT_LE(most, 15 / (stages - 1) + 1);
            if (vocab == 64) {
                EXPECT_LE(most, 16 / stages + 1);
            }
        }
}

TEST(Layouts, ShardsPutTogetherAreTheWhole) {
    for (const auto& [name, config] : test::variants(4))
        for (const ParameterSpec& spec : parameter_table(config))
            for (const int64_t tp : {1, 2, 4}) {
                const Tensor value = Tensor::full(spec.shape, 77, DType::f32), whole = value.clone();
                set_initial_value(config, spec, 9, 0, 0, value);
                for (int64_t rank = 0; rank < tp; ++rank) {
                    const Shard shard = shard_of(spec, tp, rank);
                    put_shard(take_shard(value, shard, DType::f32, {}), shard, whole);
                }
                EXPECT_EQ(whole.to_vector(), value.to_vector()) << name << " " << spec.name;
            }
}

// Each rank makes its own part of the starting values, in its own type.
TEST(Layouts, StartingValuesAreThoseOfTheWhole) {
    for (const auto& [name, config] : test::variants(4))
        for (const DType dtype : {DType::f64, DType::f32, DType::bf16}) {
            LanguageModel alone(config, dtype, {});
            alone.initialize(9);
            for (const Parameter& parameter : alone.parameters())
                for (const int64_t tp : {2, 4})
                    for (int64_t rank = 0; rank < tp; ++rank) {
                        const Shard shard = shard_of(parameter.spec, tp, rank);
                        const Tensor& whole = parameter.variable.value();
                        const Tensor expected = take_shard(whole, shard, whole.dtype(), {});
                        const Tensor part = Tensor::full(shard.shape, 77, whole.dtype());
                        set_initial_part(config, parameter.spec, 9, shard, part);
                        EXPECT_EQ(part.to_vector(), expected.to_vector())
                            << name << " " << parameter.spec.name << " rank " << rank << " of " << tp;
                    }
        }
}

}  // namespace
}  // namespace levin
