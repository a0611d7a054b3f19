#include "trainer/parity.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>

#include "checkpoint/huggingface.h"
#include "checkpoint/safetensors.h"
#include "model/language_model.h"
#include "parallel/agreement.h"
#include "parallel/data_parallel.h"
#include "trainer/generation.h"
#include "trainer/optimizer.h"
#include "trainer/passes.h"
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

// ||a - b|| and ||b||, squared; summed over parts.
struct Distance {
    double difference = 0, norm = 0;
    void add(const Tensor& a, const Tensor& b) {
        const std::vector<double> x = a.to_vector(), y = b.to_vector();
        if (x.size() != y.size()) difference = std::numeric_limits<double>::infinity();
        for (size_t i = 0; i < std::min(x.size(), y.size()); ++i) {
            difference += (x[i] - y[i]) * (x[i] - y[i]);
            norm += y[i] * y[i];
        }
    }
    double relative() const {
        const double error = std::sqrt(difference / (norm > 0 ? norm : 1));
        return std::isnan(error) ? std::numeric_limits<double>::infinity() : error;
    }
};

double relative_error(const Tensor& a, const Tensor& b) {
    Distance distance;
    distance.add(a, b);
    return distance.relative();
}

class Parity {
public:
    Parity(const std::string& folder, DType dtype, const Device& device,
           const std::shared_ptr<Communicator>& ranks, const ParityLayout& layout)
        : loaded_(load_model(folder)),
          folder_(folder),
          golden_(folder + "/golden.safetensors"),
          device_(device),
          bounds_(bounds_of(dtype, device)),
          mesh_(std::make_shared<Mesh>(ranks, make_layout(ranks->size(), layout.tp, layout.cp, layout.pp))),
          model_(loaded_.config, dtype, device, mesh_, layout.virtual_stages,
                 {.sequence_scatter = layout.sequence_scatter}),
          zero_(static_cast<int>(layout.zero)) {
        std::map<std::string, Tensor> values;
        for (const Parameter& parameter : model_.parameters())
            values[parameter.spec.name] = loaded_.parameters->read(parameter.spec.name);
        model_.load(values);
        if (mesh_->replicas()->size() == 1) return;
        std::vector<Variable> variables;
        DataParallel::Options options{.stage = zero_, .units = {}};
        for (Parameter& parameter : model_.parameters()) {
            variables.push_back(parameter.variable);
            options.units.push_back(parameter.spec.layer);
        }
        data_parallel_ = std::make_unique<DataParallel>(std::move(variables), mesh_->replicas(), options);
    }

    std::vector<ParityRow> run() {
        if (std::filesystem::exists(folder_ + "/recipe.json")) {
            trajectory();
        } else {
            forward_and_backward();
            const Layout& layout = mesh_->layout();
            if (layout.tp == layout.ranks() && zero_ == 0)
                decode();
            else
                row("decode", 0, -1, "left out: on one rank or with tensor parallelism alone");
        }
        return std::move(rows_);
    }

private:
    void row(const std::string& name, double error, double bound, std::string note = {}) {
        rows_.push_back({name, error, bound, std::move(note)});
    }

    Tensor tensor(const std::vector<int32_t>& ids) const {
        return Tensor::from({static_cast<int64_t>(ids.size())}, ids, device_);
    }

    // A whole parameter's gradient or weight from what the ranks have of it: `own` gives this rank's part
    // (see Parameter::shard) of parameter number i.
    Tensor whole(const ParameterSpec& spec, const std::function<Tensor(size_t)>& own) const {
        Tensor value = Tensor::zeros(spec.shape, accumulator_of(model_.dtype()), device_);
        for (size_t i = 0; i < model_.parameters().size(); ++i) {
            const Parameter& parameter = model_.parameters()[i];
            if (parameter.spec.name != spec.name) continue;
            const Tensor part = own(i);  // may be collective: before anybody looks at `counted`
            if (parameter.counted) put_shard(part, parameter.shard, value);
        }
        if (mesh_->model()->size() > 1) mesh_->model()->all_reduce(value);
        return value;
    }

    // This rank's part of parameter i from the ranges that it and its replicas keep (ZeRO).
    template <class Range, class Part>
    Tensor joined(size_t i, const std::vector<Range>& ranges, const Part& part) const {
        const Parameter& parameter = model_.parameters()[i];
        Tensor flat =
            Tensor::zeros({element_count(parameter.shard.shape)}, accumulator_of(model_.dtype()), device_);
        for (const Range& range : ranges)
            if (range.parameter == i)
                flat.narrow(0, range.start, range.count).copy_from(std::invoke(part, range));
        if (data_parallel_ && data_parallel_->stage() > 0) mesh_->replicas()->all_reduce(flat);
        return flat.view(parameter.shard.shape);
    }

    // Compares each Hugging Face tensor of each parameter with golden `prefix`.<key>.
    void compare_pieces(const std::string& prefix, const std::function<Tensor(size_t)>& own, double bound) {
        for (const ParameterSpec& spec : parameter_table(model_.config())) {
            const Tensor value = whole(spec, own);
            int64_t start = 0;
            for (const ParameterPiece& piece : spec.pieces) {
                const Tensor part = value.narrow(0, start, piece.rows);
                start += piece.rows;
                row(prefix + piece.hf_name, relative_error(part, golden_.read(prefix + piece.hf_name)),
                    bound);
            }
        }
    }

    // The rows of a batch that are this data-parallel rank's. Where there are not as many for each, the last
    // ones get rows that do not count: every rank makes the same calls.
    struct Rows {
        int64_t first = 0, count = 0, real = 0;
    };
    Rows rows_of(int64_t batch) const {
        const int64_t dp = mesh_->layout().dp, each = (batch + dp - 1) / dp;
        const int64_t first = mesh_->place().dp * each;
        return {first, each, std::clamp<int64_t>(batch - first, 0, each)};
    }
    // As micro-batches: one for all rows, or with a pipeline one for each.
    std::vector<DeviceBatch> batches_of(const std::vector<int32_t>& ids, const std::vector<int32_t>& targets,
                                        int64_t batch, int64_t length) const {
        const Rows rows = rows_of(batch);
        const int64_t each = mesh_->layout().pp > 1 ? 1 : rows.count;
        std::vector<DeviceBatch> batches;
        for (int64_t start = 0; start < rows.count; start += each) {
            Batch part;
            part.count = each;
            part.length = length;
            for (int64_t r = start; r < start + each; ++r) {
                const bool real = r < rows.real;
                const auto from = (real ? rows.first + r : 0) * length;
                part.inputs.insert(part.inputs.end(), ids.begin() + from, ids.begin() + from + length);
                if (real)
                    part.targets.insert(part.targets.end(), targets.begin() + from,
                                        targets.begin() + from + length);
                else
                    part.targets.insert(part.targets.end(), static_cast<size_t>(length), -1);
            }
            batches.push_back(to_device(part, model_));
        }
        return batches;
    }

    // Forward, backward and reduction; the loss of the whole batch.
    double pass(const std::vector<DeviceBatch>& batches, double scale) {
        double loss = 0;
        for (const Tensor& part : run_passes(model_, batches, {.scale = scale}, data_parallel_.get()))
            loss += part.item();
        return sum_over(*mesh_->pp(), sum_over(*mesh_->replicas(), loss));
    }

    void compare_logits(const std::vector<DeviceBatch>& batches, int64_t batch, int64_t length) {
        NoGradient off;
        const Rows rows = rows_of(batch);
        const Tensor golden = golden_.read("logits");
        Distance distance;
        int64_t row_of_batch = 0;
        for (const DeviceBatch& part : batches) {
            const Variable hidden = run_forward(model_, part);
            const int64_t own = part.layout.length;
            for (int64_t r = 0; r < part.layout.batch; ++r, ++row_of_batch) {
                if (!hidden.defined() || row_of_batch >= rows.real) continue;
                const Tensor logits = model_.logits(Variable(hidden.value().narrow(0, r * own, own)));
                const Tensor expected =
                    golden.narrow(0, rows.first + row_of_batch, 1).narrow(1, part.layout.first_position, own);
                distance.add(logits, expected.contiguous());
            }
        }
        // Tensor-parallel ranks all have the same.
        for (double* sum : {&distance.difference, &distance.norm})
            *sum = sum_over(*mesh_->pp(), sum_over(*mesh_->replicas(), *sum));
        LEVIN_CHECK(golden.count() == batch * length * model_.config().vocab_size, "parity",
                    "logits {} in the folder", to_string(golden.shape()));
        row("logits", distance.relative(), bounds_.logits);
    }

    void forward_and_backward() {
        const Tensor ids = golden_.read("input_ids");
        const int64_t batch = ids.dim(0), length = ids.dim(1);
        const auto values = ids.to_host<int32_t>();
        std::vector<int32_t> targets(values.size(), -1);
        for (size_t t = 0; t + 1 < values.size(); ++t)
            if ((static_cast<int64_t>(t) + 1) % length != 0) targets[t] = values[t + 1];
        const std::vector<DeviceBatch> batches = batches_of(values, targets, batch, length);
        compare_logits(batches, batch, length);
        const double loss = pass(batches, 1.0 / static_cast<double>(batch * (length - 1)));
        row("loss", relative_error(Tensor::full({1}, loss, DType::f64), golden_.read("loss")),
            bounds_.logits);
        const std::vector<OwnedRange> owned =
            data_parallel_ ? data_parallel_->owned() : std::vector<OwnedRange>{};
        compare_pieces(
            "grad.",
            [&](size_t i) {
                return owned.empty() ? model_.parameters()[i].variable.gradient()
                                     : joined(i, owned, &OwnedRange::gradient);
            },
            bounds_.gradients);
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
        const Variable hidden = model_.hidden(tensor(ids), {.batch = 1, .length = length}, &state);
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
        Optimizer optimizer(model_,
                            {.beta1 = recipe.at("betas").at(0),
                             .beta2 = recipe.at("betas").at(1),
                             .eps = number("eps"),
                             .weight_decay = number("weight_decay_matrices"),
                             .clip_grad_norm = number("clip_grad_norm")},
                            data_parallel_.get());
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
            const double loss =
                pass(batches_of(ids, targets, batch, length), 1.0 / static_cast<double>(batch * length));
            const double learning_rate = learning_rate_at(rate, schedule, steps, step);
            optimizer.step(learning_rate);
            const auto i = static_cast<size_t>(step);
            loss_error = worst(loss_error, loss, losses[i]);
            norm_error = worst(norm_error, optimizer.gradient_norm().item(), norms[i]);
            rate_error = worst(rate_error, learning_rate, rates[i]);
        }
        const std::string note = fmt::format("largest relative difference in {} steps", steps);
        row("loss", loss_error, bounds_.trajectory_loss, note);
        row("grad_norm", norm_error, bounds_.trajectory_norm, note);
        row("learning_rate", rate_error, 1e-6, note);  // the file holds it in f32
        compare_pieces(
            "final.",
            [&](size_t i) {
                return joined(i, optimizer.ranges(),
                              [&](const OptimizerRange& range) { return optimizer.master_of(range); });
            },
            bounds_.final_weights);
    }

    LoadedModel loaded_;
    std::string folder_;
    SafetensorsReader golden_;
    Device device_;
    Bounds bounds_;
    std::shared_ptr<const Mesh> mesh_;
    LanguageModel model_;
    int zero_;
    std::unique_ptr<DataParallel> data_parallel_;
    std::vector<ParityRow> rows_;
};

}  // namespace

std::vector<ParityRow> run_parity(const std::string& folder, DType dtype, const Device& device,
                                  const std::shared_ptr<Communicator>& ranks, const ParityLayout& layout) {
    LEVIN_REQUIRE(
        std::filesystem::exists(folder + "/golden.safetensors"), "parity",
        "{}/golden.safetensors is missing; parity compares with a folder such as tests/golden/tnl-base",
        folder);
    LEVIN_REQUIRE(!layout.sequence_scatter || layout.tp > 1, "parity",
                  "--sequence-scatter divides tokens over tensor-parallel ranks, and --tp is {}: give --tp 2 "
                  "or more, or leave it out",
                  layout.tp);
    return Parity(folder, dtype, device, ranks, layout).run();
}

}  // namespace levin
