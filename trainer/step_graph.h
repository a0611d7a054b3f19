// Forward and backward of a micro-batch recorded once and launched again: for small models, whose kernels a
// GPU runs faster than the host can queue them one by one.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/stream_graph.h"
#include "model/language_model.h"
#include "trainer/config.h"
#include "trainer/evaluation.h"

namespace levin {

// Whether a run on `ranks` ranks records its passes, by trainer.step_graph. `auto`: where nothing stands in
// the way (step_graph_obstacle) and the host would keep a device of this peak waiting.
bool wants_step_graph(const Config& config, const Device& device, int64_t ranks, double flops_per_second);

// Two recordings, as the kernels of the first micro-batch of an update overwrite the gradients and those of
// later ones add to them. What the host decides in them is the shape of the batch and the options of the
// loss: a batch that differs from the first one in these runs as it is. A pass of each kind runs as it is
// before one is recorded: it chooses algorithms and fills caches.
class StepGraph {
public:
    // A model alone, whose parameters keep their memory; it must live as long.
    explicit StepGraph(const LanguageModel& model);
    ~StepGraph();
    StepGraph(const StepGraph&) = delete;

    // Adds the gradients of the batch's loss, which it returns: on the device, scaled, in memory of its own.
    // The same bits as LanguageModel::loss and backward(). Waits for nothing.
    Tensor run(const DeviceBatch& batch, const ops::CrossEntropyOptions& options);

    int64_t launches() const { return launches_; }               // passes that were launched as a whole
    size_t bytes() const { return pool_ ? pool_->bytes() : 0; }  // set aside for them
    // Why recording was given up, one line: all passes then run as they are. Empty: it was not.
    const std::string& failure() const { return failure_; }

private:
    struct Recording {
        bool warm = false;  // such a pass ran as it is
        kernels::StreamGraph graph;
        std::vector<bool> before;            // which parameters have a gradient when it begins
        std::vector<const void*> addresses;  // of each parameter's value, and of its gradient at the end
        Tensor loss;
    };
    bool takes(const DeviceBatch& batch, const ops::CrossEntropyOptions& options);
    void record(Recording& recording);
    Tensor launch(Recording& recording, const DeviceBatch& batch);
    void give_up(const std::string& why);

    const LanguageModel& model_;
    const Stream stream_;
    std::vector<Variable> parameters_;
    std::unique_ptr<MemoryPool> pool_;  // outlives the recordings
    ops::TokenLayout layout_;
    ops::CrossEntropyOptions options_;
    Tensor ids_, targets_;  // what recorded passes read
    std::optional<Recording> first_, later_;
    int64_t launches_ = 0;
    std::string failure_;
};

}  // namespace levin
