// Combinations of keys that cannot work. Ranges of single keys are in the schema.
#include <fmt/format.h>

#include <algorithm>

#include "kernels/base/error.h"
#include "model/sharding.h"
#include "trainer/config.h"

namespace levin {
namespace {

const char* const where = "config";

}  // namespace

void validate(const Config& config) {
    config.model.validate();
    const TrainerConfig& trainer = config.trainer;
    LEVIN_REQUIRE(trainer.micro_batch * trainer.sequence_length < (int64_t{1} << 31), where,
                  "trainer.micro_batch is {} and trainer.sequence_length is {}: a micro-batch of {} tokens; "
                  "it must stay "
                  "below 2^31. Lower one of them",
                  trainer.micro_batch, trainer.sequence_length,
                  trainer.micro_batch * trainer.sequence_length);
    validate_batch(config, 1);
    LEVIN_REQUIRE(trainer.recompute_slice == 0 || trainer.recompute == Recompute::full, where,
                  "trainer.recompute_slice is {} but trainer.recompute is {}: slices are a way of full "
                  "recomputation; set trainer.recompute=full, or trainer.recompute_slice=0",
                  trainer.recompute_slice, enum_name(trainer.recompute));
    const auto& mixer = config.model.mixer;
    const int64_t cp = config.parallel.cp, share = (trainer.sequence_length + cp - 1) / cp;
    LEVIN_REQUIRE(trainer.recompute_slice == 0 || trainer.recompute_slice >= share ||
                      std::find(mixer.begin(), mixer.end(), Mixer::softmax) == mixer.end(),
                  where,
                  "trainer.recompute_slice is {} and a rank has {} tokens of each sequence: softmax "
                  "attention (model.mixer) needs a sequence whole; set trainer.recompute_slice=0 or {}, or "
                  "model.mixer=lightning",
                  trainer.recompute_slice, share, share);
    LEVIN_REQUIRE(
        config.model.position != Position::absolute || trainer.sequence_length <= config.model.max_position,
        where,
        "trainer.sequence_length is {} but model.max_position is {}, the rows of the table of "
        "model.position: "
        "absolute; raise model.max_position or shorten the sequences",
        trainer.sequence_length, config.model.max_position);
    LEVIN_REQUIRE(config.model.position != Position::absolute || !config.data.packed_documents, where,
                  "data.packed_documents is true with model.position: absolute: positions count on through "
                  "the documents of a pass, so the result would depend on trainer.micro_batch; set "
                  "data.packed_documents=false or another model.position");
    LEVIN_REQUIRE(
        config.trainer.precision != DType::f64 || config.parallel.gradient_dtype == StoredType::f32, where,
        "parallel.gradient_dtype is bf16 with trainer.precision f64, whose gradients cross between ranks "
        "in f64; leave gradient_dtype at f32, or train in f32 or bf16");
    LEVIN_REQUIRE(config.trainer.precision != DType::f64 || config.optimizer.moment_dtype == StoredType::f32,
                  where,
                  "optimizer.moment_dtype is bf16 with trainer.precision f64, whose moments are f64; leave "
                  "moment_dtype at f32, or train in f32 or bf16");
    const double least = config.optimizer.final_learning_rate();
    LEVIN_REQUIRE(least <= config.optimizer.learning_rate, where,
                  "optimizer.min_learning_rate is {} and optimizer.learning_rate is {}: the schedule falls, "
                  "so the first "
                  "must not be larger; lower it, or set it to -1 for a tenth of the learning rate",
                  least, config.optimizer.learning_rate);
}

void validate_for_training(const Config& config) {
    LEVIN_REQUIRE(
        !config.run.folder.empty(), where,
        "run.folder is not set; give the folder of the run in the file or as run.folder=runs/first");
    LEVIN_REQUIRE(
        !config.data.train.empty(), where,
        "data.train is empty; give the PREFIX of a token shard (`levin data build` makes one) in the file or "
        "as data.train=PREFIX");
}

std::string step_graph_obstacle(const Config& config, DeviceType device, int64_t ranks) {
    if (device != DeviceType::cuda)
        return "a CPU launches nothing, so there is nothing to record: choose the device cuda, or leave "
               "trainer.step_graph at auto";
    if (ranks > 1)
        return fmt::format(
            "{} ranks exchange gradients or activations in every pass, which is not recorded: leave it at "
            "auto",
            ranks);
    if (config.data.packed_documents)
        return "with data.packed_documents every pass has other documents: leave it at auto, or set "
               "data.packed_documents=false";
    if (config.model.position == Position::absolute)
        return "with model.position: absolute every pass takes positions from the host: leave it at auto";
    return {};
}

bool has_two_batches(const Config& config) {
    return config.parallel.cp == 1 && !config.parallel.sequence_scatter &&
           config.trainer.recompute != Recompute::full &&
           (config.trainer.micro_batch > 1 || config.data.packed_documents);
}

Layout layout_of(const Config& config, int64_t ranks) {
    const ParallelConfig& parallel = config.parallel;
    const Layout layout = make_layout(ranks, parallel.tp, parallel.cp, parallel.pp);
    validate_layout(config.model, layout, parallel.virtual_stages);
    LEVIN_REQUIRE(
        !parallel.sequence_scatter || layout.tp > 1, where,
        "parallel.sequence_scatter divides tokens over tensor-parallel ranks, and parallel.tp is 1: "
        "set parallel.tp=2 or more, or parallel.sequence_scatter=false");
    LEVIN_REQUIRE(
        layout.cp <= config.trainer.sequence_length, where,
        "parallel.cp is {} and trainer.sequence_length {}: each rank needs a token of every sequence; "
        "set parallel.cp to {} or less",
        layout.cp, config.trainer.sequence_length, config.trainer.sequence_length);
    const TrainerConfig& trainer = config.trainer;
    const int64_t tokens = trainer.micro_batch * ((trainer.sequence_length + layout.cp - 1) / layout.cp);
    LEVIN_REQUIRE(
        !parallel.sequence_scatter || trainer.recompute_slice == 0 || trainer.recompute_slice >= tokens,
        where,
        "trainer.recompute_slice is {} and a rank has {} tokens of a micro-batch, which "
        "parallel.sequence_scatter divides over ranks: they are not cut once more; set "
        "trainer.recompute_slice=0 or parallel.sequence_scatter=false",
        trainer.recompute_slice, tokens);
    LEVIN_REQUIRE(
        parallel.two_batch_overlap != Switch::on || (layout.tp > 1 && has_two_batches(config)), where,
        "parallel.two_batch_overlap is on with parallel.tp {}, parallel.cp {}, parallel.sequence_scatter {}, "
        "trainer.recompute {} and trainer.micro_batch {}: halves of a micro-batch take turns where tp is 2 "
        "or more, cp 1, tokens are not scattered, layers not recomputed as a whole, and a micro-batch has "
        "two "
        "sequences or more, or packed documents; set parallel.two_batch_overlap=auto, or change what differs",
        layout.tp, layout.cp, parallel.sequence_scatter, enum_name(trainer.recompute), trainer.micro_batch);
    return layout;
}

void validate_batch(const Config& config, int64_t ranks) {
    const int64_t global = config.trainer.global_batch, pass = config.trainer.micro_batch * ranks;
    if (global % pass == 0) return;
    const int64_t above = (global / pass + 1) * pass;
    const std::string at_once = ranks == 1
                                    ? fmt::format("trainer.micro_batch is {}", config.trainer.micro_batch)
                                    : fmt::format(
                                          "trainer.micro_batch is {} on {} data-parallel ranks, {} at "
                                          "once",
                                          config.trainer.micro_batch, ranks, pass);
    fail(Fault::input, where,
         "trainer.global_batch is {} sequences and {}: the first must be a multiple of the second. Set "
         "trainer.global_batch={} or change trainer.micro_batch",
         global, at_once, above);
}

}  // namespace levin
