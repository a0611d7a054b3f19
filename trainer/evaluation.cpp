#include "trainer/evaluation.h"

#include <algorithm>

#include "core/transfer.h"
#include "parallel/agreement.h"
#include "parallel/context_parallel/chunks.h"
#include "trainer/passes.h"

namespace levin {

DeviceBatch to_device(const Batch& batch, const LanguageModel& model) {
    const Mesh* mesh = model.mesh().get();
    const Device& device = model.device();
    const auto cp = static_cast<int>(mesh ? mesh->layout().cp : 1);
    const int chunk = mesh ? static_cast<int>(mesh->place().cp) : 0;
    DeviceBatch result;
    result.layout =
        chunk_layout(batch.count, batch.length, batch.cu_seqlens, chunk, cp, device, model.slice_tokens());
    const std::vector<int32_t> ids = chunk_of(batch.inputs, result.layout);
    const std::vector<int32_t> targets = chunk_of(batch.targets, result.layout);
    result.ids = upload({result.layout.tokens()}, ids, device);
    result.targets = upload({result.layout.tokens()}, targets, device);
    result.counted = std::count_if(targets.begin(), targets.end(), [](int32_t t) { return t >= 0; });
    return result;
}

EvaluationResult evaluate(const LanguageModel& model, const Loader& loader, int64_t micro_batch,
                          int64_t batches, Communicator& ranks) {
    NoGradient off;
    const int64_t samples = batches > 0 ? std::min(batches * micro_batch, loader.samples_per_epoch())
                                        : loader.samples_per_epoch();
    double sum = 0, tokens = 0;
    const Mesh* mesh = model.mesh().get();
    Communicator &dealt = mesh ? *mesh->dp() : ranks, &summed = mesh ? *mesh->replicas() : ranks;
    for (int64_t round = 0; round < samples; round += dealt.size() * micro_batch) {
        const int64_t first = round + dealt.rank() * micro_batch;
        // Where samples run out, a rank repeats one, uncounted: parameters may be gathered from all ranks.
        const bool extra = first >= samples;
        const DeviceBatch batch = to_device(
            extra ? loader.batch(0, 1) : loader.batch(first, std::min(micro_batch, samples - first)), model);
        const Variable hidden = run_forward(model, batch);
        const double loss =
            hidden.defined() ? model.loss_of(hidden, batch.targets, {}).loss.value().item() : 0.0;
        if (extra) continue;
        sum += loss;
        tokens += static_cast<double>(batch.counted);
    }
    sum = sum_over(summed, sum);
    if (mesh) sum = sum_over(*mesh->pp(), sum);  // the last stage has it
    tokens = sum_over(summed, tokens);
    return {sum / std::max(1.0, tokens), static_cast<int64_t>(tokens)};
}

}  // namespace levin
