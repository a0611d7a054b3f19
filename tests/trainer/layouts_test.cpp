// Training at every layout is the training of one rank: 20 steps of loss and gradient norm, for a TNL (odd
// vocabulary, odd length, stages of different size), a packed one, a TNL3, a Transformer and a hybrid.
//
// One job of 8 ranks walks the layouts through sub-communicators; a layout of 4 ranks has two halves at work
// at once. By default a pairwise cover; with LEVIN_LAYOUTS=all every combination, with all:I/N every N-th
// from the I-th on (1 .. N): tests/all_layouts.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>

#include "core/random.h"
#include "parallel/agreement.h"
#include "parallel/self.h"
#include "parallel/world.h"
#include "trainer/optimizer.h"
#include "trainer/passes.h"

namespace levin {
namespace {

constexpr int64_t kSteps = 20, kLength = 33, kGlobalBatch = 4, kVocabulary = 37;

struct Subject {
    std::string name;
    ModelConfig config;
    bool packed = false;
    bool bf16_moments = false;  // where it is f32
    bool softmax() const {
        return std::find(config.mixer.begin(), config.mixer.end(), Mixer::softmax) != config.mixer.end();
    }
};

std::vector<Subject> subjects() {
    const auto base = [](Family family) {
        ModelConfig config = ModelConfig::of(family);
        config.vocab_size = kVocabulary;
        config.hidden_size = 32;
        config.num_layers = 9;
        config.num_heads = 4;
        config.glu_dim = 40;
        config.gate_dim = 5;
        config.init_std = 0.02;
        return config;
    };
    std::vector<Subject> list{{"tnl", base(Family::tnl)},
                              {"tnl packed", base(Family::tnl), true},
                              {"tnl3", base(Family::tnl3)},
                              {"transformer", base(Family::transformer)},
                              {"hybrid", base(Family::tnl)}};
    list[0].config.pad_token_id = 3;
    list[1].config.norm = Norm::layernorm;
    list[3].config.tie_embeddings = false;
    list[2].bf16_moments = true;
    list[4].config.mixer = {Mixer::lightning, Mixer::softmax, Mixer::lightning};
    return list;
}

struct Setting {
    Layout layout;
    int64_t virtual_stages = 1, zero = 0;
    bool scatter = false;
    int64_t slice_tokens = 0;  // recomputed in slices, where there is no softmax layer
    bool halves = false;       // of a micro-batch of two, in turn
    std::string name() const {
        return to_string(layout) + (scatter ? ", scattered" : "") +
               (virtual_stages > 1 ? fmt::format(", {} stages a rank", virtual_stages) : "") +
               (zero > 0 ? fmt::format(", zero {}", zero) : "") +
               (slice_tokens > 0 ? fmt::format(", slices of {}", slice_tokens) : "") +
               (halves ? ", halves in turn" : "");
    }
};

// Every combination that up to 8 ranks allow; where a sequence is divided, also recomputed in slices.
std::vector<Setting> all_settings() {
    std::vector<Setting> list;
    for (const int64_t tp : {1, 2, 4})
        for (const int64_t cp : {1, 2, 4})
            for (const int64_t pp : {1, 2, 4})
                for (const int64_t v : {1, 2})
                    for (const int64_t dp : {1, 2, 4})
                        for (const int64_t zero : {0, 1, 2, 3})
                            for (const bool scatter : {false, true}) {
                                if (tp * cp * pp * dp > 8 || tp * cp * pp * dp == 1) continue;
                                if (v > 1 && pp == 1) continue;
                                if (zero > 0 && dp * cp == 1) continue;
                                if (scatter && tp == 1) continue;
                                const Layout layout{.pp = pp, .dp = dp, .cp = cp, .tp = tp};
                                list.push_back({layout, v, zero, scatter});
                                if (cp > 1 && !scatter) list.push_back({layout, v, zero, scatter, 5});
                            }
    return list;
}

struct Selection {
    bool all = false;
    size_t first = 1, of = 1;  // of all settings every of-th from the first-th on
};

// LEVIN_LAYOUTS: nothing, all or all:I/N.
Selection selection() {
    const char* value = std::getenv("LEVIN_LAYOUTS");
    Selection result{.all = value && *value};
    if (!result.all || std::string(value) == "all") return result;
    LEVIN_REQUIRE(std::sscanf(value, "all:%zu/%zu", &result.first, &result.of) == 2 && result.first >= 1 &&
                      result.first <= result.of,
                  "test", "LEVIN_LAYOUTS={}: it is all, or all:I/N for every N-th from the I-th on", value);
    return result;
}

std::vector<Setting> settings(const Selection& selection) {
    if (selection.all) {
        const std::vector<Setting> list = all_settings();
        std::vector<Setting> chosen;
        for (size_t i = selection.first - 1; i < list.size(); i += selection.of) chosen.push_back(list[i]);
        return chosen;
    }
    // Every pair of values of (tp, cp, pp with its stages, dp, zero) that 8 ranks allow is in some row, and
    // scattered tokens with each of them.
    return {{{.tp = 2}},
            {{.cp = 2}, 1, 1},
            {{.pp = 2}},
            {{.dp = 2}, 1, 2},
            {{.tp = 4}, 1, 0, false, 0, true},
            {{.dp = 2, .tp = 2}, 1, 3, false, 0, true},
            {{.pp = 2, .tp = 2}, 2, 0, false, 0, true},
            {{.pp = 2, .dp = 2, .tp = 2}, 1, 1, false, 0, true},
            {{.pp = 4}, 2},
            {{.pp = 2, .dp = 2}, 2, 1, false, 10},
            {{.dp = 2, .tp = 2}, 1, 3, true},
            {{.dp = 2, .tp = 2}, 1, 3, false, 10},
            {{.cp = 4}, 1, 3},
            {{.dp = 2, .cp = 2, .tp = 2}},
            {{.cp = 2, .tp = 2}, 1, 1, false, 5},
            {{.pp = 2, .cp = 4}, 1, 2, false, 3},
            {{.pp = 2, .cp = 2, .tp = 2}, 1, 2, true},
            {{.pp = 2, .dp = 2, .tp = 2}, 2, 3},
            {{.pp = 2, .dp = 2, .cp = 2}, 1, 3},
            {{.pp = 4, .cp = 2}, 2, 1},
            {{.dp = 2, .tp = 4}, 1, 1, true},
            {{.pp = 2, .tp = 4}, 2, 0, true},
            {{.dp = 4, .cp = 2}, 1, 2}};
}

// Sample number `sample` of a made-up corpus.
void append_sample(int64_t sample, bool packed, Batch& batch) {
    const Random random(11, fmt::format("sample {}", sample));
    const auto token = [&](int64_t i) {
        // Learnable: mostly the successor of the token before.
        int64_t value = static_cast<int64_t>(random.bits(0) % kVocabulary);
        for (int64_t t = 1; t <= i; ++t) {
            const uint64_t bits = random.bits(static_cast<uint64_t>(t));
            value =
                bits % 4 == 0 ? static_cast<int64_t>((bits >> 8) % kVocabulary) : (value + 1) % kVocabulary;
        }
        return static_cast<int32_t>(value);
    };
    const int64_t row = batch.count++;
    for (int64_t i = 0; i < kLength; ++i) {
        batch.inputs.push_back(token(i));
        batch.targets.push_back(token(i + 1));
    }
    if (!packed) return;
    const auto border = static_cast<int64_t>(1 + random.bits(99) % (kLength - 1));
    if (batch.cu_seqlens.empty()) batch.cu_seqlens.push_back(0);
    batch.cu_seqlens.push_back(static_cast<int32_t>(row * kLength + border));
    batch.cu_seqlens.push_back(static_cast<int32_t>((row + 1) * kLength));
    batch.targets[static_cast<size_t>(row * kLength + border - 1)] = -1;
}

// Loss and gradient norm of every step.
std::vector<double> train(const Subject& subject, DType dtype, const std::shared_ptr<Communicator>& ranks,
                          const Setting& setting) {
    const auto mesh = std::make_shared<Mesh>(ranks, setting.layout);
    // Scattered tokens go in two chunks, small as they are.
    LanguageModel model(subject.config, dtype, {}, mesh, setting.virtual_stages,
                        {.sequence_scatter = setting.scatter,
                         .overlap_chunks = setting.scatter ? 2 : 1,
                         .least_chunk_bytes = 1,
                         .two_batches = setting.halves});
    model.initialize(5);
    if (setting.slice_tokens > 0 && !subject.softmax())
        model.set_recomputation(Recomputation::full, setting.slice_tokens);
    std::unique_ptr<DataParallel> data_parallel;
    if (mesh->replicas()->size() > 1) {
        DataParallel::Options options{
            .bucket_bytes = 20000, .stage = static_cast<int>(setting.zero), .units = {}};
        std::vector<Variable> variables;
        for (Parameter& parameter : model.parameters()) {
            variables.push_back(parameter.variable);
            options.units.push_back(parameter.spec.layer);
        }
        data_parallel = std::make_unique<DataParallel>(variables, mesh->replicas(), options);
    }
    Optimizer optimizer(model,
                        {.clip_grad_norm = 1.0, .bf16_moments = subject.bf16_moments && dtype == DType::f32},
                        data_parallel.get());
    const int64_t dp = setting.layout.dp, micro_batch = dp * setting.layout.pp > 1 && !setting.halves ? 1 : 2;
    std::vector<double> numbers;
    for (int64_t step = 0; step < kSteps; ++step) {
        std::vector<DeviceBatch> batches;
        int64_t counted = 0;
        for (int64_t j = 0; j < kGlobalBatch / (dp * micro_batch); ++j) {
            Batch batch;
            batch.length = kLength;
            const int64_t first = step * kGlobalBatch + (j * dp + mesh->place().dp) * micro_batch;
            for (int64_t i = 0; i < micro_batch; ++i) append_sample(first + i, subject.packed, batch);
            batches.push_back(to_device(batch, model));
            counted += batches.back().counted;
        }
        const double all = sum_over(*mesh->replicas(), static_cast<double>(counted));
        const std::vector<Tensor> losses =
            run_passes(model, batches, {.scale = 1 / all, .z_loss = 1e-4}, data_parallel.get());
        optimizer.step(1e-3);
        double loss = 0;
        for (const Tensor& part : losses) loss += part.item();
        numbers.push_back(sum_over(*mesh->pp(), sum_over(*mesh->replicas(), loss)));
        numbers.push_back(optimizer.gradient_norm().item());
    }
    return numbers;
}

double worst(const std::vector<double>& numbers, const std::vector<double>& expected, size_t which) {
    double most = 0;
    for (size_t i = which; i < numbers.size(); i += 2) {
        const double error = std::abs(numbers[i] - expected[i]) / std::abs(expected[i]);
        most = std::isnan(error) ? INFINITY : std::max(most, error);
    }
    return most;
}

TEST(Layouts, TwentyStepsAtEveryLayoutAreThoseOfOneRank) {
    World& world = World::current();
    ASSERT_EQ(world.size(), 8);
    struct Case {
        Subject subject;
        DType dtype;
    };
    std::vector<Case> cases;
    for (const Subject& subject : subjects())
        for (const DType dtype : {DType::f32, DType::f64}) cases.push_back({subject, dtype});

    // The references, dealt over the ranks.
    std::vector<std::vector<double>> expected;
    for (size_t i = 0; i < cases.size(); ++i)
        if (static_cast<int>(i % 8) == world.rank()) {
            expected.push_back(train(cases[i].subject, cases[i].dtype, make_self_communicator("alone"), {}));
            const auto& e = expected.back();
            ASSERT_LT(e[e.size() - 2], e[0] - 0.3) << cases[i].subject.name;  // it learns
        } else {
            expected.emplace_back(2 * kSteps, 0.0);
        }
    for (size_t i = 0; i < cases.size(); ++i) {
        const Tensor values = Tensor::from({2 * kSteps}, expected[i]);
        world.all().broadcast(values, static_cast<int>(i % 8));
        expected[i] = values.to_vector();
    }

    // Largest differences of losses and of gradient norms, for f32 and f64, as a whole and at one setting.
    std::array<double, 4> overall{}, here{};
    std::string failed;
    const Selection chosen = selection();
    const std::vector<Setting> list = settings(chosen);
    for (size_t s = 0; s < list.size(); ++s) {
        const Setting& setting = list[s];
        const auto size = static_cast<int>(setting.layout.ranks());
        const int groups = 8 / size, group = world.rank() / size;
        const auto ranks = world.communicator()->split(group < groups ? group : -1, world.rank(), "layout");
        here = {};
        int wrong = 0;
        // A cover of layouts takes the element types in turn; the full matrix has all of them.
        for (size_t i = 0; ranks && i < cases.size(); ++i) {
            const Case& c = cases[i];
            if (static_cast<int>(i / 2 % static_cast<size_t>(groups)) != group) continue;
            if (!chosen.all && (s + i / 2 + i) % 2 == 0) continue;
            if (chosen.all && setting.slice_tokens > 0 && c.subject.softmax()) continue;  // it has no slices
            const auto numbers = train(c.subject, c.dtype, ranks, setting);
            const size_t wide = c.dtype == DType::f64;
            const double loss = worst(numbers, expected[i], 0), norm = worst(numbers, expected[i], 1);
            if (!(loss < (wide ? 1e-10 : 1e-5) && norm < (wide ? 1e-10 : 2e-4))) {
                ++wrong;
                failed +=
                    fmt::format("{} {} at {}: losses differ by up to {:.1e}, gradient norms by {:.1e}\n",
                                c.subject.name, to_string(c.dtype), setting.name(), loss, norm);
            }
            here[wide] = std::max(here[wide], loss);
            here[2 + wide] = std::max(here[2 + wide], norm);
        }
        for (size_t i = 0; i < here.size(); ++i) {
            here[i] = max_over(world.all(), here[i]);
            overall[i] = std::max(overall[i], here[i]);
        }
        const bool equal = max_over(world.all(), static_cast<double>(wrong)) == 0;
        if (world.is_root() && chosen.all)
            fmt::print("{}: {}: loss f32 {:.1e} f64 {:.1e}, gradient norm f32 {:.1e} f64 {:.1e}\n",
                       setting.name(), equal ? "equal" : "DIFFERS", here[0], here[1], here[2], here[3]);
        std::fflush(stdout);
    }
    for (size_t wide = 0; wide < 2; ++wide)
        if (world.is_root())
            fmt::print("{}: largest relative difference of a loss {:.1e}, of a gradient norm {:.1e}\n",
                       wide ? "f64" : "f32", overall[wide], overall[2 + wide]);
    std::fflush(stdout);
    world.all().barrier();  // a rank that fails ends the others
    EXPECT_TRUE(failed.empty()) << failed;
}

}  // namespace
}  // namespace levin
