#include "trainer/passes.h"

#include <algorithm>
#include <map>
#include <optional>

#include "parallel/context_parallel/ops.h"
#include "parallel/pipeline/schedule.h"
#include "trainer/step_graph.h"

namespace levin {

namespace {

// One update through the pipeline. Messages of a tick go out together when it ends and are waited for where
// they are needed, so that ranks with shorter passes do not wait for longer ones elsewhere.
class Pipeline {
public:
    Pipeline(const LanguageModel& model, const std::vector<DeviceBatch>& batches,
             const ops::CrossEntropyOptions& options, DataParallel* reduce_early)
        : model_(model),
          batches_(batches),
          options_(options),
          reduce_early_(reduce_early),
          ranks_(*model.mesh()->pp()),
          schedule_(ranks_.size(), model.num_stages() / ranks_.size(), static_cast<int64_t>(batches.size())) {
    }

    std::vector<Tensor> run() {
        for (int64_t tick = 0; tick < schedule_.ticks(); ++tick) {
            Tensor result;
            if (const auto& action = schedule_.at(tick, ranks_.rank()))
                result = action->forward ? forward(*action) : backward(*action);
            exchange(tick, result);
        }
        for (const Pending& message : sent_) message->wait();
        return std::move(losses_);
    }

private:
    using Place = std::pair<int64_t, int64_t>;  // stage, micro-batch
    struct Message {
        Tensor value;
        Pending arrival;
    };
    struct Kept {
        Variable input, output;
    };

    const DeviceBatch& batch(const PipelineAction& action) const {
        return batches_[static_cast<size_t>(action.micro_batch)];
    }

    // The message that an action of this rank waits for.
    static Tensor take(std::map<Place, Message>& box, const Place& place) {
        const auto found = box.find(place);
        LEVIN_CHECK(found != box.end(), "pipeline", "nothing came for stage {}, micro-batch {}", place.first,
                    place.second);
        found->second.arrival->wait();
        Tensor value = found->second.value;
        box.erase(found);
        return value;
    }

    Tensor forward(const PipelineAction& action) {
        const Place place{action.stage, action.micro_batch};
        Kept kept;
        if (action.stage > 0) kept.input = Variable(take(activations_, place), true);
        const DeviceBatch& b = batch(action);
        kept.output = model_.run_stage(action.stage, kept.input, b.ids, b.layout);
        if (action.stage == schedule_.stages() - 1) {
            kept.output = model_.loss_of(kept.output, b.targets, options_).loss;
            losses_.push_back(kept.output.value());
        }
        const Tensor result = kept.output.value();
        kept_[place] = std::move(kept);
        return result;
    }

    Tensor backward(const PipelineAction& action) {
        const Place place{action.stage, action.micro_batch};
        const bool last = action.stage == schedule_.stages() - 1;
        const Tensor seed = last ? Tensor{} : take(gradients_, place);
        const Kept kept = std::move(kept_.at(place));
        kept_.erase(place);
        if (reduce_early_ && ++backward_done_ == batches_.size()) reduce_early_->reduce_next_backward();
        levin::backward(kept.output, seed);
        if (action.stage == 0) return {};
        return kept.input.gradient().to(model_.dtype()).contiguous();
    }

    // Sends what this rank made in this tick, and makes ready for what others made for it.
    void exchange(int64_t tick, const Tensor& result) {
        ranks_.group([&] {
            for (int64_t from = 0; from < ranks_.size(); ++from) {
                const auto& action = schedule_.at(tick, from);
                if (!action) continue;
                const int64_t to = schedule_.receiver(*action);
                if (to < 0) continue;
                if (from == ranks_.rank()) {
                    sent_.push_back(ranks_.start_send(result, static_cast<int>(to)));
                } else if (to == ranks_.rank()) {
                    Message message;
                    message.value = Tensor::empty(
                        {model_.stream_rows(batch(*action).layout.tokens()), model_.config().hidden_size},
                        model_.dtype(), model_.device());
                    message.arrival = ranks_.start_recv(message.value, static_cast<int>(from));
                    auto& box = action->forward ? activations_ : gradients_;
                    box[{action->stage + (action->forward ? 1 : -1), action->micro_batch}] =
                        std::move(message);
                }
            }
        });
        while (!sent_.empty() && sent_.front()->test()) sent_.erase(sent_.begin());  // gives memory back
    }

    const LanguageModel& model_;
    const std::vector<DeviceBatch>& batches_;
    const ops::CrossEntropyOptions& options_;
    DataParallel* reduce_early_;  // null: the caller reduces when all is done
    size_t backward_done_ = 0;
    Communicator& ranks_;
    const PipelineSchedule schedule_;
    std::map<Place, Message> activations_, gradients_;
    std::map<Place, Kept> kept_;
    std::vector<Pending> sent_;
    std::vector<Tensor> losses_;
};

// A tied embedding lives on the first and on the last stage: both get the sum of what both found.
void join_tied_embedding(const LanguageModel& model) {
    const auto& ends = model.mesh()->ends();
    if (!ends || !model.config().tie_embeddings) return;
    for (const Parameter& parameter : model.parameters())
        if (parameter.spec.name == "embedding") ends->all_reduce(parameter.variable.gradient());
}

// Where the tokens between blocks are scattered over tensor-parallel ranks, each has found the part of its
// tokens in the gradients of what works there. One launch, of what this rank keeps of them alone.
void sum_partial_gradients(const LanguageModel& model, const DataParallel* data_parallel) {
    const std::vector<Parameter>& parameters = model.parameters();
    if (std::none_of(parameters.begin(), parameters.end(), [](const Parameter& p) { return p.partial; }))
        return;
    Communicator& ranks = *model.mesh()->tp();
    ranks.group([&] {
        if (data_parallel) {
            for (const OwnedRange& range : data_parallel->owned())
                if (parameters[range.parameter].partial) ranks.all_reduce(range.gradient);
        } else {
            for (const Parameter& parameter : parameters)
                if (parameter.partial) ranks.all_reduce(parameter.variable.gradient());
        }
    });
}

Variable forward_through_stages(const LanguageModel& model, const DeviceBatch& batch) {
    Communicator& ranks = *model.mesh()->pp();
    Variable stream;
    for (int64_t stage = ranks.rank(); stage < model.num_stages(); stage += ranks.size()) {
        if (stage > 0) {
            const Tensor input =
                Tensor::empty({model.stream_rows(batch.layout.tokens()), model.config().hidden_size},
                              model.dtype(), model.device());
            ranks.recv(input, static_cast<int>((stage - 1) % ranks.size()));
            stream = Variable(input);
        }
        stream = model.run_stage(stage, stream, batch.ids, batch.layout);
        if (stage == model.num_stages() - 1) return stream;
        ranks.send(stream.value(), static_cast<int>((stage + 1) % ranks.size()));
    }
    return {};
}

}  // namespace

std::vector<bool> formed_in_bf16(const LanguageModel& model, const Config& config, int64_t micro_batches,
                                 bool two_batches) {
    const bool once = micro_batches == 1 && config.trainer.recompute_slice == 0 && !two_batches;
    std::vector<bool> result;
    for (const Parameter& parameter : model.parameters()) {
        const bool tied = config.model.tie_embeddings && parameter.spec.name == "embedding";
        result.push_back(config.parallel.gradient_dtype == StoredType::bf16 && once && !tied &&
                         parameter.variable.dtype() == DType::bf16);
    }
    return result;
}

void form_in_bf16(LanguageModel& model, const std::vector<bool>& parameters) {
    const MemoryScope scope(MemoryCategory::gradients);
    const OpScope name("gradients in bf16");
    for (size_t i = 0; i < parameters.size(); ++i) {
        Variable& variable = model.parameters()[i].variable;
        if (parameters[i])
            variable.set_gradient_buffer(
                Tensor::empty(variable.shape(), DType::bf16, variable.value().device()));
    }
}

std::vector<Tensor> run_passes(const LanguageModel& model, const std::vector<DeviceBatch>& batches,
                               const ops::CrossEntropyOptions& options, DataParallel* data_parallel,
                               StepGraph* graph) {
    std::vector<Tensor> losses;
    if (graph) {
        for (const DeviceBatch& batch : batches) losses.push_back(graph->run(batch, options));
        return losses;
    }
    if (model.num_stages() > 1) {
        // Gradients may be reduced during the last backward pass, unless stages take turns in it, or the
        // other end of the pipeline has its part of one.
        const bool one_stage = model.num_stages() == model.mesh()->layout().pp;
        const bool joined = model.mesh()->ends() && model.config().tie_embeddings;
        const bool early = one_stage && !joined;
        losses = Pipeline(model, batches, options, early ? data_parallel : nullptr).run();
        join_tied_embedding(model);
        if (data_parallel && !early) data_parallel->reduce_next_backward();
    } else {
        for (size_t i = 0; i < batches.size(); ++i) {
            const DeviceBatch& batch = batches[i];
            const auto result = model.loss(batch.ids, batch.targets, batch.layout, options);
            if (data_parallel && i + 1 == batches.size()) data_parallel->reduce_next_backward();
            backward(result.loss);
            losses.push_back(result.loss.value());
        }
    }
    if (data_parallel) data_parallel->finish();
    sum_partial_gradients(model, data_parallel);
    context_parallel::finish_exchanges();
    return losses;
}

Variable run_forward(const LanguageModel& model, const DeviceBatch& batch) {
    NoGradient off;
    const Variable hidden = model.num_stages() == 1 ? model.hidden(batch.ids, batch.layout)
                                                    : forward_through_stages(model, batch);
    context_parallel::finish_exchanges();
    return hidden;
}

}  // namespace levin
