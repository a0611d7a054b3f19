#include "trainer/parity.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "checkpoint/huggingface.h"
#include "checkpoint/safetensors.h"
#include "model/language_model.h"
#include "trainer/generation.h"
#include "trainer/optimizer.h"
#include "trainer/schedule.h"

namespace levin {

namespace {

struct Bounds {
    double logits, gradients, decode, trajectory_loss, trajectory_norm, final_weights;
};

Bounds bounds_of(DType dtype, const Device& device) {
    if (dtype == DType::f64) return {1e-6, 1e-6, 5e-6, 1e-8, 1e-7, 1e-6};
    if (dtype == DType::bf16) return {-1, -1, -1, -1, -1, -1};
    if (device.is_cuda()) return {2e-5, 2e-4, 2e-5, 2e-5, 2e-4, 1e-3};
    return {5e-6, 5e-5, 5e-6, 2e-5, 2e-4, 1e-3};
}

double relative_error(const Tensor& a, const Tensor& b) {
    const std::vector<double> x = a.to_vector(), y = b.to_vector();
    if (x.size() != y.size()) return std::numeric_limits<double>::infinity();
    double difference = 0, norm = 0;
    for (size_t i = 0; i < x.size(); ++i) {
        difference += (x[i] - y[i]) * (x[i] - y[i]);
        norm += y[i] * y[i];
    }
    const double error = std::sqrt(difference / (norm > 0 ? norm : 1));
    return std::isnan(error) ? std::numeric_limits<double>::infinity() : error;
}

class Parity {
public:
    Parity(const std::string& folder, DType dtype, const Device& device)
        : loaded_(load_model(folder)),
          folder_(folder),
          golden_(folder + "/golden.safetensors"),
          device_(device),
          bounds_(bounds_of(dtype, device)),
          model_(loaded_.config, dtype, device) {
        std::map<std::string, Tensor> values;
        for (const Parameter& parameter : model_.parameters())
            values[parameter.spec.name] = loaded_.parameters->read(parameter.spec.name);
        model_.load(values);
    }

    std::vector<ParityRow> run() {
        if (std::filesystem::exists(folder_ + "/recipe.json")) {
            trajectory();
        } else {
            forward_and_backward();
            decode();
        }
        return std::move(rows_);
    }

private:
    void row(const std::string& name, double error, double bound, std::string note = {}) {
        rows_.push_back({name, error, bound, std::move(note)});
    }

    Tensor to_device(const std::vector<int32_t>& ids) const {
        return Tensor::from({static_cast<int64_t>(ids.size())}, ids, device_);
    }

    // Compares each Hugging Face tensor of each parameter with golden `prefix`.<key>.
    void compare_pieces(const std::string& prefix, const std::function<Tensor(size_t)>& value, double bound) {
        for (size_t i = 0; i < model_.parameters().size(); ++i) {
            const Tensor whole = value(i);
            int64_t start = 0;
            for (const ParameterPiece& piece : model_.parameters()[i].spec.pieces) {
                const Tensor part = whole.narrow(0, start, piece.rows);
                start += piece.rows;
                row(prefix + piece.hf_name, relative_error(part, golden_.read(prefix + piece.hf_name)),
                    bound);
            }
        }
    }

    void forward_and_backward() {
        const Tensor ids = golden_.read("input_ids");
        const int64_t batch = ids.dim(0), length = ids.dim(1);
        const auto values = ids.to_host<int32_t>();
        std::vector<int32_t> targets(values.size(), -1);
        for (size_t t = 0; t + 1 < values.size(); ++t)
            if ((static_cast<int64_t>(t) + 1) % length != 0) targets[t] = values[t + 1];
        const ops::TokenLayout layout{.batch = batch, .length = length};
        {
            NoGradient off;
            row("logits",
                relative_error(model_.logits(model_.hidden(to_device(values), layout)),
                               golden_.read("logits")),
                bounds_.logits);
        }
        const auto result = model_.loss(to_device(values), to_device(targets), layout,
                                        {.scale = 1.0 / static_cast<double>(batch * (length - 1))});
        row("loss", relative_error(result.loss.value(), golden_.read("loss")), bounds_.logits);
        backward(result.loss);
        compare_pieces(
            "grad.", [&](size_t i) { return model_.parameters()[i].variable.gradient(); }, bounds_.gradients);
        for (Parameter& parameter : model_.parameters()) parameter.variable.clear_gradient();
    }

    void decode() {
        NoGradient off;
        const Tensor all = golden_.read("input_ids");
        const auto ids = all.narrow(0, 0, 1).to_host<int32_t>();
        const auto expected = golden_.read("decode_tokens").to_host<int32_t>();
        const Tensor expected_logits = golden_.read("decode_logits");
        const int64_t length = all.dim(1), vocab = expected_logits.dim(-1);

        DecodeState state = model_.new_state();
        const Variable hidden = model_.hidden(to_device(ids), {.batch = 1, .length = length}, &state);
        const Tensor prefill = model_.logits(hidden);
        row("prefill_logits", relative_error(prefill, golden_.read("prefill_logits")), bounds_.decode);

        // Greedy decoding on its own tokens: one wrong token and the rest differs.
        const SamplingOptions greedy{.temperature = 0};
        std::vector<int32_t> tokens{sample_token(prefill.narrow(0, length - 1, 1).to_vector(), greedy, 0)};
        Tensor logits = Tensor::empty({expected_logits.dim(1), vocab}, DType::f64);
        for (int64_t i = 0; i < logits.dim(0); ++i) {
            const Tensor step = feed(model_, state, std::span<const int32_t>(&tokens.back(), 1));
            logits.narrow(0, i, 1).copy_from(step);
            tokens.push_back(sample_token(step.to_vector(), greedy, 0));
        }
        row("decode_logits", relative_error(logits, expected_logits), bounds_.decode);
        size_t equal = 0;
        while (equal < std::min(tokens.size(), expected.size()) && tokens[equal] == expected[equal]) ++equal;
        row("decode_tokens", static_cast<double>(expected.size() - equal), bounds_.decode < 0 ? -1 : 0,
            fmt::format("{} of {} tokens equal", equal, expected.size()));
    }

    void trajectory() {
        const nlohmann::json recipe = nlohmann::json::parse(std::ifstream(folder_ + "/recipe.json"));
        const auto number = [&](const char* key) { return recipe.at(key).get<double>(); };
        const OptimizerConfig rate{.learning_rate = number("lr_max"), .min_learning_rate = number("lr_min")};
        const ScheduleConfig schedule{.type = ScheduleType::cosine,
                                      .warmup_steps = recipe.at("warmup_steps")};
        const int64_t steps = recipe.at("total_steps"), batch = recipe.at("batch"), length = recipe.at("seq");
        Optimizer optimizer(model_, {.beta1 = recipe.at("betas").at(0),
                                     .beta2 = recipe.at("betas").at(1),
                                     .eps = number("eps"),
                                     .weight_decay = number("weight_decay_matrices"),
                                     .clip_grad_norm = number("clip_grad_norm")});
        const auto tokens = golden_.read("tokens").to_host<int32_t>();
        const std::vector<double> losses = golden_.read("loss").to_vector(),
                                  norms = golden_.read("grad_norm").to_vector(),
                                  rates = golden_.read("lr").to_vector();
        double loss_error = 0, norm_error = 0, rate_error = 0;
        // A comparison with NaN is false: count it as infinitely wrong.
        const auto worst = [](double error, double value, double expected) {
            const double difference = std::abs(value - expected) / std::abs(expected);
            return std::isnan(difference) ? std::numeric_limits<double>::infinity()
                                          : std::max(error, difference);
        };
        for (int64_t step = 0; step < steps; ++step) {
            std::vector<int32_t> ids, targets;
            for (int64_t b = 0; b < batch; ++b) {
                const auto* from = tokens.data() + (step * batch + b) * (length + 1);
                ids.insert(ids.end(), from, from + length);
                targets.insert(targets.end(), from + 1, from + length + 1);
            }
            const auto result =
                model_.loss(to_device(ids), to_device(targets), {.batch = batch, .length = length},
                            {.scale = 1.0 / static_cast<double>(batch * length)});
            backward(result.loss);
            const double learning_rate = learning_rate_at(rate, schedule, steps, step);
            optimizer.step(learning_rate);
            const auto i = static_cast<size_t>(step);
            loss_error = worst(loss_error, result.loss.value().item(), losses[i]);
            norm_error = worst(norm_error, optimizer.gradient_norm().item(), norms[i]);
            rate_error = worst(rate_error, learning_rate, rates[i]);
        }
        const std::string note = fmt::format("largest relative difference in {} steps", steps);
        row("loss", loss_error, bounds_.trajectory_loss, note);
        row("grad_norm", norm_error, bounds_.trajectory_norm, note);
        row("learning_rate", rate_error, 1e-6, note);  // the file holds it in f32
        compare_pieces(
            "final.", [&](size_t i) { return optimizer.master(i); }, bounds_.final_weights);
    }

    LoadedModel loaded_;
    std::string folder_;
    SafetensorsReader golden_;
    Device device_;
    Bounds bounds_;
    LanguageModel model_;
    std::vector<ParityRow> rows_;
};

}  // namespace

std::vector<ParityRow> run_parity(const std::string& folder, DType dtype, const Device& device) {
    LEVIN_REQUIRE(
        std::filesystem::exists(folder + "/golden.safetensors"), "parity",
        "{}/golden.safetensors is missing; parity compares with a folder such as tests/golden/tnl-base",
        folder);
    return Parity(folder, dtype, device).run();
}

}  // namespace levin
