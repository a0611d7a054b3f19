#include "trainer/loop.h"

#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <numeric>
#include <optional>

#include "checkpoint/huggingface.h"
#include "checkpoint/native.h"
#include "core/transfer.h"
#include "data/loader.h"
#include "kernels/device_memory.h"
#include "parallel/agreement.h"
#include "parallel/data_parallel.h"
#include "parallel/watchdog/activity.h"
#include "trainer/communication.h"
#include "trainer/evaluation.h"
#include "trainer/events.h"
#include "trainer/metrics.h"
#include "trainer/optimizer.h"
#include "trainer/passes.h"
#include "trainer/progress.h"
#include "trainer/report.h"
#include "trainer/run_folder.h"
#include "trainer/schedule.h"
#include "trainer/sharded_state.h"
#include "trainer/step_graph.h"
#include "trainer/stop_signal.h"
#include "trainer/throughput.h"

namespace levin {

namespace {

using Clock = std::chrono::steady_clock;

LoaderOptions loader_options(const Config& config, bool training) {
    return {.length = config.trainer.sequence_length,
            .vocab_size = config.model.vocab_size,
            .seed = static_cast<uint64_t>(config.trainer.seed),
            .shuffle = training && config.data.shuffle,
            .packed = config.data.packed_documents,
            .mask_document_borders = config.data.packed_documents};
}

Recomputation recomputation_of(Recompute mode) {
    switch (mode) {
        case Recompute::none:
            return Recomputation::none;
        case Recompute::selective:
            return Recomputation::selective;
        case Recompute::full:
            return Recomputation::full;
    }
    return Recomputation::none;
}

// Parameters that stay gathered until the optimizer changes them lie whole on every rank.
int stage_of(const ParallelConfig& parallel) {
    return static_cast<int>(parallel.reshard_after_forward ? parallel.zero
                                                           : std::min<int64_t>(parallel.zero, 2));
}

// On GPUs a half of a batch beside a whole block of the other one hides its sums best; chunks beside products
// pay where no kernel of a collective stands in their way (docs/parallelism.md).
TensorParallelOptions tensor_parallel_options(const Config& config, const Mesh& mesh) {
    const ParallelConfig& parallel = config.parallel;
    const bool free = mesh.tp()->copy_engines();
    TensorParallelOptions options{.sequence_scatter = parallel.sequence_scatter};
    options.two_batches = parallel.two_batch_overlap == Switch::on ||
                          (parallel.two_batch_overlap == Switch::automatic && mesh.tp()->size() > 1 &&
                           config.trainer.device == DeviceType::cuda && has_two_batches(config));
    options.overlap_chunks = parallel.overlap_chunks > 0    ? parallel.overlap_chunks
                             : free && !options.two_batches ? 4
                                                            : 1;
    return options;
}

class Trainer {
public:
    Trainer(const Config& config, World& world)
        : config_(config),
          ranks_(world.all()),
          root_(world.is_root()),
          device_(world.device(config.trainer.device)),
          data_(std::make_shared<Dataset>(dataset_specs(config.data.train))),
          loader_(data_, loader_options(config, true)),
          mesh_(std::make_shared<Mesh>(world.communicator(), layout_of(config, world.size()),
                                       MeshOptions{.copy_engines = config.parallel.copy_engines,
                                                   .hierarchical = config.parallel.hierarchical})),
          model_(config.model, config.trainer.precision, device_, mesh_, config.parallel.virtual_stages,
                 tensor_parallel_options(config, *mesh_)),
          data_parallel_(start_model(config)),
          optimizer_(model_, adamw_settings(config), data_parallel_.get()) {
        if (!config.data.validation.empty())
            validation_.emplace(std::make_shared<Dataset>(dataset_specs(config.data.validation), data_.get()),
                                loader_options(config, false));
        model_.set_recomputation(recomputation_of(config.trainer.recompute), config.trainer.recompute_slice);
        if (config.log.communication && ranks_.size() > 1) meter_.emplace();
    }

    TrainingEnd run() {
        const Place place("training");
        const std::string failure = claim();
        if (!failure.empty()) fail(Fault::input, "run", "{}", failure);
        Watchdog::keep_message_in(config_.run.folder, root_);
        resume();
        if (step_ >= config_.trainer.steps) {
            say(fmt::format("{} is finished: {} of {} steps are done. For more, raise trainer.steps",
                            config_.run.folder, step_, config_.trainer.steps));
            return TrainingEnd::already_finished;
        }
        peak_ = device_peak(device_, config_.trainer.precision).flops_per_second * ranks_.size();
        if (wants_step_graph(config_, device_, ranks_.size(), peak_)) step_graph_.emplace(model_);
        open_logs();
        introduce();
        const bool stopped = loop();
        if (progress_) progress_->finish();
        events_.reset();
        metrics_.reset();
        if (root_ && config_.log.report) report();
        if (stopped)
            say(step_ == 0
                    ? "stopped before the first step; the same command starts again"
                    : fmt::format("stopped at step {}, saved; the same command goes on from there", step_));
        return stopped ? TrainingEnd::stopped : TrainingEnd::finished;
    }

private:
    // What the run computed is safe by now, and a report can be drawn again.
    void report() {
        try {
            write_report({config_.run.folder}, config_.run.folder + "/report.html");
        } catch (const Error& error) {
            say(fmt::format("warning: no report: {}; `levin report {}` draws it later", error.what(),
                            config_.run.folder));
        }
    }

    // Initialises the model, before the optimizer copies the weights into its masters, and divides the work.
    std::unique_ptr<DataParallel> start_model(const Config& config) {
        model_.initialize(static_cast<uint64_t>(config.trainer.seed));
        const auto& t = config.trainer;
        const std::vector<bool> in_bf16 =
            formed_in_bf16(model_, config, t.global_batch / (t.micro_batch * mesh_->layout().dp),
                           tensor_parallel_options(config, *mesh_).two_batches);
        if (mesh_->replicas()->size() == 1) {
            form_in_bf16(model_, in_bf16);
            return nullptr;
        }
        std::vector<Variable> variables;
        DataParallel::Options options{.bucket_bytes = static_cast<size_t>(config.parallel.bucket_mib) << 20,
                                      .stage = stage_of(config.parallel),
                                      .units = {},
                                      .reduce_in_bf16 = config.parallel.gradient_dtype == StoredType::bf16,
                                      .formed_in_bf16 = in_bf16};
        for (Parameter& parameter : model_.parameters()) {
            variables.push_back(parameter.variable);
            options.units.push_back(parameter.spec.layer);
        }
        return std::make_unique<DataParallel>(std::move(variables), mesh_->replicas(), options);
    }

    static AdamWSettings adamw_settings(const Config& config) {
        return {.beta1 = config.optimizer.beta1,
                .beta2 = config.optimizer.beta2,
                .eps = config.optimizer.eps,
                .weight_decay = config.optimizer.weight_decay,
                .clip_grad_norm = config.trainer.clip_grad_norm,
                .bf16_moments = config.optimizer.moment_dtype == StoredType::bf16};
    }

    void say(const std::string& text) {
        if (!root_) return;
        if (progress_) return progress_->message(text);
        std::fputs((text + "\n").c_str(), stdout);  // nobody may be reading any more: no reason to end
        std::fflush(stdout);
    }

    // Rank 0 looks at the folder; all learn of a refusal and end alike, with its message.
    std::string claim() {
        std::string failure;
        if (root_) {
            try {
                lock_ = claim_run_folder(config_, *data_);
            } catch (const Error& error) {
                failure = error.what();
                if (failure.starts_with("[run] ")) failure.erase(0, 6);
            }
        }
        return broadcast_text(ranks_, failure);
    }

    void resume() {
        if (!config_.checkpoint.resume) return;
        const Place place("reading the checkpoint");
        const auto checkpoint =
            open_newest_checkpoint(config_.checkpoint_folder(), [&](const std::string& line) { say(line); });
        // Ranks that saw different checkpoints (a folder that is not shared) must not train together.
        require_same(ranks_, "the checkpoint to resume from",
                     checkpoint ? checkpoint_name(checkpoint->state().step) : std::string("none"));
        if (!checkpoint) return;
        const CheckpointState& state = checkpoint->state();
        LEVIN_REQUIRE(same_model(model_config_from_json(state.model_json, checkpoint->path()), config_.model),
                      "run", "{} holds another model than the configuration; choose another run.folder",
                      checkpoint->path());
        // checkpoint.folder may be another run's, whose samples are not those this run has behind it.
        const auto seed = static_cast<uint64_t>(config_.trainer.seed);
        const int64_t next_sample = state.step * config_.trainer.global_batch;
        LEVIN_REQUIRE(state.step == 0 || (state.seed == seed && state.next_sample == next_sample), "run",
                      "{} is another run's: seed {} and {} samples done, while this run has seed {} and {} "
                      "samples at step {}; choose another checkpoint.folder",
                      checkpoint->path(), state.seed, state.next_sample, seed, next_sample, state.step);
        for (OptimizerRange& range : optimizer_.ranges()) {
            const Parameter& parameter = model_.parameters()[range.parameter];
            const Tensor master = optimizer_.master_of(range);
            read_parts(*checkpoint, kModelGroup, parameter, range.start, master);
            optimizer_.set_master(range, master);
            // A converted model has weights only: its moments start at zero.
            if (checkpoint->has_group(kFirstMomentGroup)) {
                read_parts(*checkpoint, kFirstMomentGroup, parameter, range.start, range.m);
                read_parts(*checkpoint, kSecondMomentGroup, parameter, range.start, range.v);
            }
        }
        tell_of_moments(*checkpoint);
        optimizer_.publish();
        optimizer_.set_steps_done(state.step);
        step_ = saved_step_ = state.step;
        tokens_ = state.tokens;
        if (step_ > 0) say(fmt::format("resumed from {}", checkpoint->path()));
    }

    // Moments go from type to type as they are read.
    void tell_of_moments(const Checkpoint& checkpoint) {
        if (!checkpoint.has_group(kFirstMomentGroup)) return;
        const DType saved = checkpoint.dtype(kFirstMomentGroup, checkpoint.names(kFirstMomentGroup).front());
        const bool narrow = config_.optimizer.moment_dtype == StoredType::bf16;
        if ((saved == DType::bf16) == narrow) return;
        say(fmt::format(
            "the moments of {} are {} and are {} from here on (optimizer.moment_dtype)", checkpoint.path(),
            to_string(saved),
            narrow ? "rounded to bf16" : "kept in " + to_string(accumulator_of(config_.trainer.precision))));
    }

    void open_logs() {
        if (!root_) return;
        metrics_.emplace(config_.run.folder + "/metrics.jsonl", step_ + 1);
        if (config_.log.tensorboard) events_.emplace(config_.run.folder, step_ + 1);
    }

    void introduce() {
        const auto& t = config_.trainer;
        say(
            fmt::format("{}: {} {:.2f} M parameters, {} layers of width {}, {} on {}, {} rank{} x {} "
                        "thread{}, peak {:.0f} GFLOP/s",
                        config_.run.folder, enum_name(config_.model.family),
                        static_cast<double>(config_.model.parameter_count()) / 1e6, config_.model.num_layers,
                        config_.model.hidden_size, to_string(t.precision), to_string(device_), ranks_.size(),
                        ranks_.size() == 1 ? "" : "s", omp_get_max_threads(),
                        omp_get_max_threads() == 1 ? "" : "s", peak_ / 1e9));
        if (ranks_.size() > 1)
            say(fmt::format(
                "layout {}{}{}{}", to_string(mesh_->layout()),
                config_.parallel.sequence_scatter ? ", tokens scattered between blocks" : "",
                model_.two_batches() ? ", halves of a micro-batch in turn" : "",
                config_.parallel.zero == 0 || mesh_->replicas()->size() == 1 ? ""
                : stage_of(config_.parallel) == config_.parallel.zero
                    ? fmt::format(", zero {}", config_.parallel.zero)
                    : fmt::format(", zero {} with weights kept after forward", config_.parallel.zero)));
        if (mesh_->tp_spans_hosts())
            say("warning: tensor-parallel ranks on different hosts: slow; make the ranks per host a multiple "
                "of "
                "parallel.tp");
        say(fmt::format("{} tokens in {} documents; {} tokens an update, {} updates", data_->num_tokens(),
                        data_->num_documents(), t.global_batch * t.sequence_length, t.steps));
        if (root_) progress_.emplace(t.steps, step_, t.log_every, stdout, !World::current().uses_mpi());
    }

    // True when it ended because somebody was told to stop.
    bool loop() {
        StopSignal signal;
        if (any_agree(ranks_, signal.requested())) return true;  // it came during the start
        const auto& t = config_.trainer;
        const int64_t size = mesh_->layout().dp;
        const int64_t accumulation = t.global_batch / (t.micro_batch * size);
        // Micro-batch j of data-parallel rank r takes samples (j * ranks + r) * micro_batch of the update:
        // one constant stride, and the same samples in an update at every layout.
        Prefetcher prefetcher(loader_,
                              {.first_sample = step_ * t.global_batch + mesh_->place().dp * t.micro_batch,
                               .count = t.micro_batch,
                               .stride = t.micro_batch * size,
                               .batches = (t.steps - step_) * accumulation,
                               .depth = std::max<int64_t>(1, config_.data.prefetch)});
        // A GPU works on one step while the host queues the next: the numbers of a step are read then, so
        // that nothing waits. Before anything that lasts (evaluation, checkpoint, the end) the host catches
        // up, and a checkpoint is only written after the step before it proved finite.
        std::optional<Underway> underway;
        while (step_ < t.steps) {
            // What an evaluation or a checkpoint said belongs to no step.
            if (meter_ && !underway) meter_->take(device_.type);
            Underway next = update(prefetcher, accumulation);
            if (underway) conclude(*underway);
            underway = std::move(next);
            const bool last = step_ == t.steps;
            const bool stop = any_agree(ranks_, signal.requested());
            const bool save_now =
                stop || last || (config_.checkpoint.every > 0 && step_ % config_.checkpoint.every == 0);
            const bool evaluate_now =
                validation_ && (last || (t.eval_every > 0 && step_ % t.eval_every == 0));
            if (device_.is_cpu() || save_now || evaluate_now) {
                arrive(*underway);
                const Place place(fmt::format("step {}, its numbers and evaluation", step_));
                // The last evaluation, and the checkpoint behind it, may need the memory of the recordings.
                if (last) step_graph_.reset();
                if (evaluate_now)
                    underway->row.validation_loss =
                        evaluate(model_, *validation_, t.micro_batch,
                                 t.eval_batches * t.global_batch / t.micro_batch, ranks_)
                            .loss;
                conclude(*underway);
                underway.reset();
            }
            if (save_now) save(stop || last);
            if (stop && !last) return true;
        }
        return false;
    }

    // A step that was queued and whose numbers are on their way.
    struct Underway {
        StepMetrics row;
        Readout* numbers = nullptr;  // the loss of each micro-batch, then the gradient norm
        Clock::time_point queued;
        bool arrived = false;
    };

    // Waits until the step has ended and completes its row.
    void arrive(Underway& step) {
        if (step.arrived) return;
        step.arrived = true;
        const std::vector<double> numbers = step.numbers->values();
        const auto now = Clock::now();
        StepMetrics& row = step.row;
        // The last stage of a pipeline has the loss, tensor-parallel ranks all have it.
        row.loss = sum_over(*mesh_->replicas(), std::accumulate(numbers.begin(), numbers.end() - 1, 0.0));
        row.loss = sum_over(*mesh_->pp(), row.loss);
        row.grad_norm = numbers.back();
        // Steps overlap on the host: this one began when it was queued or when the one before ended.
        row.step_ms =
            std::chrono::duration<double, std::milli>(now - std::max(step.queued, last_end_)).count();
        last_end_ = now;
        const auto& t = config_.trainer;
        row.tokens_per_second = static_cast<double>(t.global_batch * t.sequence_length) / row.step_ms * 1000;
        const double rate = row.tokens_per_second * config_.model.flops_per_token(t.sequence_length);
        peak_ = std::max(peak_, rate);  // a peak measured while the machine was busy is too low
        row.mfu = rate / peak_;
        if (meter_) add_communication(row, *meter_, *mesh_, device_.type);
    }

    void conclude(Underway& step) {
        arrive(step);
        const StepMetrics& row = step.row;
        record(row);
        if (std::isfinite(row.loss) && std::isfinite(row.grad_norm)) return;
        const int64_t pad = config_.model.pad_token_id;
        fail(Fault::numbers, "train",
             "step {}: loss {} and gradient norm {} are no longer finite. The last checkpoint is from step "
             "{}; "
             "try a lower optimizer.learning_rate or a longer schedule.warmup_steps{}",
             row.step, row.loss, row.grad_norm, saved_step_,
             pad < 0 ? ""
                     : fmt::format(
                           ", and take pad tokens (id {}) out of the data if it has any: their zero rows can "
                           "make gradients overflow (model.pad_token_id in docs/config.md)",
                           pad));
    }

    Underway update(Prefetcher& prefetcher, int64_t accumulation) {
        const OpScope scope("update");
        const std::string number = fmt::format("step {}", step_ + 1);
        Place place(number + ", reading data");
        Underway result;
        result.queued = Clock::now();
        const auto& t = config_.trainer;
        double wait = 0;
        std::vector<DeviceBatch> batches;
        int64_t counted = 0;
        for (int64_t i = 0; i < accumulation; ++i) {
            batches.push_back(to_device(prefetcher.next(), model_));
            wait += prefetcher.last_wait_ms();
            counted += batches.back().counted;
        }
        place.move_to(number + ", forward and backward");
        // The loss is a mean over the tokens of all ranks and micro-batches, never a mean of means.
        const double all = config_.data.packed_documents
                               ? sum_over(*mesh_->replicas(), static_cast<double>(counted))
                               : static_cast<double>(t.global_batch * t.sequence_length);
        std::vector<Tensor> losses = run_passes(
            model_, batches, {.scale = 1 / all, .z_loss = t.z_loss, .chunk_tokens = t.loss_chunk_tokens},
            data_parallel_ ? &*data_parallel_ : nullptr, step_graph_ ? &*step_graph_ : nullptr);
        tell_of_step_graph();
        place.move_to(number + ", optimizer");
        const double learning_rate = learning_rate_at(config_.optimizer, config_.schedule, t.steps, step_);
        optimizer_.step(learning_rate);

        ++step_;
        tokens_ += t.global_batch * t.sequence_length;
        losses.push_back(optimizer_.gradient_norm());
        result.numbers = &readouts_[static_cast<size_t>(step_ % 2)];
        result.numbers->start(losses);
        result.row.step = step_;
        result.row.tokens = tokens_;
        result.row.learning_rate = learning_rate;
        result.row.data_wait_ms = wait;
        result.row.peak_memory_gib = static_cast<double>(memory_statistics(device_).peak_total) / (1 << 30);
        return result;
    }

    // Once: that passes are launched as a whole, or why they are not.
    void tell_of_step_graph() {
        if (!step_graph_) return;
        if (!step_graph_->failure().empty()) {
            say(fmt::format(
                "warning: passes could not be recorded as CUDA graphs: {}; training goes on without",
                step_graph_->failure()));
            step_graph_.reset();
        } else if (step_graph_->launches() > 0 && !told_of_step_graph_) {
            told_of_step_graph_ = true;
            say(fmt::format("from step {} on passes are launched as CUDA graphs, with {:.2f} GiB set aside",
                            step_ + 1, static_cast<double>(step_graph_->bytes()) / (1 << 30)));
        }
    }

    void record(const StepMetrics& row) {
        if (!root_) return;
        metrics_->write(row);
        if (events_) {
            std::vector<std::pair<std::string, double>> scalars{
                {"loss/train", row.loss},
                {"learning_rate", row.learning_rate},
                {"grad_norm", row.grad_norm},
                {"throughput/tokens_per_second", row.tokens_per_second},
                {"throughput/mfu", row.mfu}};
            if (row.validation_loss) scalars.emplace_back("loss/validation", *row.validation_loss);
            if (row.exposed_comm_ms) scalars.emplace_back("throughput/exposed_comm_ms", *row.exposed_comm_ms);
            events_->write(row.step, scalars);
        }
        progress_->update(row, row.step);
        if (row.validation_loss)
            progress_->message(fmt::format("step {}: validation loss {:.4f}, perplexity {:.2f}", row.step,
                                           *row.validation_loss, std::exp(*row.validation_loss)));
    }

    // A save that fails (full disk) costs a warning while training goes on; the last one must succeed.
    void save(bool must_succeed) {
        if (saved_step_ == step_) return;
        const Place place(fmt::format("saving the checkpoint of step {}", step_));
        std::vector<CheckpointTensor> tensors;
        if (mesh_->replicas()->rank() == 0 || config_.parallel.zero > 0)
            for (const OptimizerRange& range : optimizer_.ranges()) {
                const Parameter& parameter = model_.parameters()[range.parameter];
                if (!parameter.counted) continue;  // another rank has it as well
                add_parts(tensors, kModelGroup, parameter, range.start, optimizer_.master_of(range));
                add_parts(tensors, kFirstMomentGroup, parameter, range.start, range.m);
                add_parts(tensors, kSecondMomentGroup, parameter, range.start, range.v);
            }
        const CheckpointState state{.step = step_,
                                    .tokens = tokens_,
                                    .next_sample = step_ * config_.trainer.global_batch,
                                    .seed = static_cast<uint64_t>(config_.trainer.seed),
                                    .model_json = model_config_to_json(config_.model),
                                    .config_yaml = to_yaml(config_),
                                    .fields = {{"precision", to_string(config_.trainer.precision)}}};
        try {
            save_checkpoint(
                config_.checkpoint_folder(), state, tensors,
                {.keep = config_.checkpoint.keep,
                 .rank = ranks_.rank(),
                 .ranks = ranks_.size(),
                 .first_problem = [&](const std::string& mine) { return first_text(ranks_, mine); },
                 .log = [&](const std::string& line) { say(line); }});
            saved_step_ = step_;
        } catch (const Error& error) {
            if (must_succeed || error.fault() == Fault::communication) throw;
            say(fmt::format("warning: step {} was not saved: {}; training goes on", step_, error.what()));
        }
    }

    const Config& config_;
    Communicator& ranks_;
    const bool root_;
    const Device device_;
    std::unique_ptr<FolderLock> lock_;  // rank 0's
    std::shared_ptr<const Dataset> data_;
    Loader loader_;
    std::shared_ptr<const Mesh> mesh_;
    LanguageModel model_;
    std::unique_ptr<DataParallel> data_parallel_;  // null where one rank holds all data
    Optimizer optimizer_;
    std::optional<StepGraph> step_graph_;
    bool told_of_step_graph_ = false;
    std::optional<Loader> validation_;
    std::optional<MetricsWriter> metrics_;
    std::optional<EventWriter> events_;
    std::optional<Progress> progress_;
    double peak_ = 1;
    int64_t step_ = 0, saved_step_ = 0, tokens_ = 0;
    std::array<Readout, 2> readouts_{Readout(device_), Readout(device_)};
    Clock::time_point last_end_{};
    std::optional<CommunicationMeter> meter_;
};

}  // namespace

TrainingEnd train(const Config& config, World& world) {
    validate_for_training(config);
    validate_batch(config, layout_of(config, world.size()).dp);
    if (config.trainer.step_graph == Switch::on) {
        const std::string obstacle = step_graph_obstacle(config, config.trainer.device, world.size());
        LEVIN_REQUIRE(obstacle.empty(), "config", "trainer.step_graph is on, but {}", obstacle);
    }
    require_same(world.all(), "the resolved configuration", to_yaml(config));
    if (config.trainer.threads > 0) omp_set_num_threads(static_cast<int>(config.trainer.threads));
    return Trainer(config, world).run();
}

}  // namespace levin
