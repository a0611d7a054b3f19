// The model as a whole: every family and switch trains, decodes what it computes in parallel, and recomputes
// exactly.
#include "model/language_model.h"

#include <gtest/gtest.h>

#include <cmath>

#include "model/slopes.h"
#include "tests/model/compare.h"

namespace levin {
namespace {

using test::ids, test::relative_error;

ModelConfig small(Family family = Family::tnl) {
    ModelConfig config = ModelConfig::of(family);
    config.vocab_size = 37;
    config.hidden_size = 24;
    config.num_layers = 3;
    config.num_heads = 3;
    config.glu_dim = 40;
    config.gate_dim = 5;
    config.init_std = 0.2;  // large, so that every part matters
    return config;
}

// Every family and every ablation switch, one change at a time.
std::vector<std::pair<std::string, ModelConfig>> variants() {
    std::vector<std::pair<std::string, ModelConfig>> list;
    const auto add = [&](const std::string& name, Family family,
                         const std::function<void(ModelConfig&)>& change) {
        ModelConfig config = small(family);
        change(config);
        list.emplace_back(name, config);
    };
    const auto same = [](ModelConfig&) {};
    add("tnl", Family::tnl, same);
    add("tnl3", Family::tnl3, same);
    add("transformer", Family::transformer, same);
    add("hybrid", Family::tnl, [](ModelConfig& c) {
        c.mixer = {Mixer::lightning, Mixer::softmax, Mixer::lightning};
    });
    add("grouped queries", Family::transformer, [](ModelConfig& c) { c.num_kv_heads = 1; });
    for (const Decay decay : {Decay::alibi_no_temperature, Decay::paper, Decay::none})
        add("decay " + enum_name(decay), Family::tnl, [=](ModelConfig& c) { c.decay = decay; });
    for (const Position position : {Position::absolute, Position::none})
        add("position " + enum_name(position), Family::tnl, [=](ModelConfig& c) { c.position = position; });
    add("lrpe everywhere", Family::tnl, [](ModelConfig& c) { c.lrpe_layers = LrpeLayers::all; });
    add("lrpe nowhere", Family::tnl, [](ModelConfig& c) { c.lrpe_layers = LrpeLayers::none; });
    add("no gate", Family::tnl, [](ModelConfig& c) { c.gate = Gate::none; });
    for (const Activation a :
         {Activation::none, Activation::one_plus_elu, Activation::exp, Activation::sigmoid})
        add("activation " + enum_name(a), Family::tnl, [=](ModelConfig& c) { c.qk_activation = a; });
    for (const Norm norm : {Norm::rmsnorm, Norm::layernorm})
        for (const Family family : {Family::tnl, Family::tnl3})
            add("norm " + enum_name(norm), family, [=](ModelConfig& c) { c.norm = norm; });
    add("glu silu", Family::tnl, [](ModelConfig& c) { c.glu_activation = Activation::silu; });
    add("bias", Family::tnl3, [](ModelConfig& c) { c.bias = true; });
    add("untied", Family::tnl, [](ModelConfig& c) { c.tie_embeddings = false; });
    return list;
}

TEST(LanguageModel, HasTheParametersItsConfigCounts) {
    for (const auto& [name, config] : variants()) {
        const LanguageModel model(config, DType::f32, {});
        int64_t count = 0;
        for (const Parameter& parameter : model.parameters()) {
            count += parameter.variable.value().count();
            int64_t rows = 0;
            for (const ParameterPiece& piece : parameter.spec.pieces) rows += piece.rows;
            EXPECT_EQ(rows, parameter.spec.shape[0]) << name << " " << parameter.spec.name;
        }
        EXPECT_EQ(count, config.parameter_count()) << name;
    }
}

TEST(LanguageModel, EveryParameterOfEveryVariantLearns) {
    for (const auto& [name, config] : variants()) {
        LanguageModel model(config, DType::f64, {});
        model.initialize(1);
        const Tensor input = ids(2 * 17);
        const auto loss =
            model.loss(input, ids(2 * 17, "targets"), {.batch = 2, .length = 17}, {.scale = 1.0 / 34});
        EXPECT_NEAR(loss.loss.value().item(), std::log(37), 3) << name;
        backward(loss.loss);
        for (Parameter& parameter : model.parameters()) {
            ASSERT_TRUE(parameter.variable.gradient().defined()) << name << " " << parameter.spec.name;
            double norm = 0;
            for (const double g : parameter.variable.gradient().to_vector()) norm += g * g;
            EXPECT_GT(norm, 0) << name << " " << parameter.spec.name;
            EXPECT_TRUE(std::isfinite(norm)) << name << " " << parameter.spec.name;
        }
    }
}

TEST(LanguageModel, TheRecurrentFormComputesTheSame) {
    NoGradient off;
    for (const auto& [name, config] : variants()) {
        LanguageModel model(config, DType::f64, {});
        model.initialize(2);
        const Tensor input = ids(70);
        const Tensor whole = model.logits(model.hidden(input, {.batch = 1, .length = 70}));
        DecodeState state = model.new_state();
        int64_t start = 0;
        for (const int64_t length : {40, 1, 1, 20, 1, 7}) {  // prefill, steps, and pieces in between
            const Tensor part = model.logits(
                model.hidden(input.narrow(0, start, length), {.batch = 1, .length = length}, &state));
            EXPECT_LT(relative_error(part, whole.narrow(0, start, length)), 1e-10) << name << " at " << start;
            start += length;
        }
        EXPECT_EQ(state.position, 70);
    }
}

TEST(LanguageModel, PackedDocumentsGiveTheLossAndGradientsOfSeparateOnes) {
    for (const auto& [name, config] : variants()) {
        if (config.position == Position::absolute) continue;  // its positions do not restart
        LanguageModel packed(config, DType::f64, {}), separate(config, DType::f64, {});
        packed.initialize(3);
        separate.initialize(3);
        const std::vector<int32_t> borders{0, 5, 6, 70, 90};
        const Tensor input = ids(90), targets = ids(90, "targets");
        const ops::CrossEntropyOptions options{.scale = 1.0 / 90};
        const auto loss = packed.loss(
            input, targets, {.batch = 1, .length = 90, .cu_seqlens = Tensor::from({5}, borders)}, options);
        backward(loss.loss);
        double sum = 0;
        for (size_t d = 0; d + 1 < borders.size(); ++d) {
            const int64_t start = borders[d], length = borders[d + 1] - start;
            const auto alone = separate.loss(input.narrow(0, start, length), targets.narrow(0, start, length),
                                             {.batch = 1, .length = length}, options);
            sum += alone.loss.value().item();
            backward(alone.loss);
        }
        EXPECT_NEAR(loss.loss.value().item(), sum, 1e-11) << name;
        for (size_t i = 0; i < packed.parameters().size(); ++i)
            // theta: positions differ between the two forms, which its gradient does not see but for
            // rounding.
            EXPECT_LT(relative_error(packed.parameters()[i].variable.gradient(),
                                     separate.parameters()[i].variable.gradient()),
                      1e-8)
                << name << " " << packed.parameters()[i].spec.name;
    }
}

TEST(LanguageModel, RecomputationGivesTheSameBitsForLessMemory) {
    for (const auto& [name, config] : variants()) {
        std::vector<std::vector<double>> reference;
        size_t kept[3];
        for (const Recomputation mode :
             {Recomputation::none, Recomputation::selective, Recomputation::full}) {
            LanguageModel model(config, DType::f32, {});
            model.initialize(4);
            model.set_recomputation(mode);
            const size_t before = memory_statistics({}).live_total;
            const auto loss = model.loss(ids(300), ids(300, "targets"), {.batch = 2, .length = 150}, {});
            kept[static_cast<int>(mode)] = memory_statistics({}).live_total - before;
            backward(loss.loss);
            for (size_t i = 0; i < model.parameters().size(); ++i) {
                const auto gradient = model.parameters()[i].variable.gradient().to_vector();
                if (mode == Recomputation::none)
                    reference.push_back(gradient);
                else
                    EXPECT_EQ(gradient, reference[i]) << name << " " << model.parameters()[i].spec.name;
            }
        }
        EXPECT_LT(kept[1], kept[0]) << name;
        EXPECT_LT(kept[2], kept[0]) << name;
    }
}

TEST(LanguageModel, PaddingStartsAtZeroAndLearnsFromATiedHeadOnly) {
    ModelConfig config = small();
    config.pad_token_id = 3;
    config.tie_embeddings = false;
    LanguageModel model(config, DType::f64, {});
    model.initialize(1);
    const Tensor table = model.parameters()[0].variable.value();
    for (const double value : table.narrow(0, 3, 1).to_vector()) EXPECT_EQ(value, 0);
    backward(model.loss(Tensor::full({8}, 3, DType::i32), ids(8), {.batch = 1, .length = 8}, {}).loss);
    for (const double value : model.parameters()[0].variable.gradient().to_vector()) EXPECT_EQ(value, 0);
}

TEST(Slopes, FollowThePublishedCode) {
    ModelConfig config = small();
    config.num_layers = 4;
    config.num_heads = 8;
    const auto first = decay_slopes(config, 0), last = decay_slopes(config, 3);
    for (size_t j = 0; j < 8; ++j) {
        const float s = static_cast<float>(std::exp2(-static_cast<double>(j + 1)));
        EXPECT_EQ(first[j], s * static_cast<float>(1.0 + 1e-5));
        EXPECT_EQ(last[j], s * static_cast<float>(0.0 + 1e-5));
    }
    config.num_heads = 6;  // the four of a power of two, then every second one of eight
    config.decay = Decay::alibi_no_temperature;
    EXPECT_EQ(decay_slopes(config, 2),
              (std::vector<float>{0.25f, 0.0625f, 0.015625f, 0.00390625f, 0.5f, 0.125f}));
    config.num_layers = 1;
    config.decay = Decay::alibi;
    EXPECT_EQ(decay_slopes(config, 0)[0], 0.25f * static_cast<float>(1 + 1e-5));
    config.num_layers = 4;
    config.decay = Decay::paper;
    EXPECT_EQ(decay_slopes(config, 1)[0], 0.0f);
    EXPECT_FLOAT_EQ(decay_slopes(config, 1)[3], 3.0f);  // 8 * 3/6 * (1 - 1/4)
}

}  // namespace
}  // namespace levin
