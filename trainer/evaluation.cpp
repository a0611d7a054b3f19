#include "trainer/evaluation.h"

#include <algorithm>

#include "core/transfer.h"
#include "parallel/agreement.h"

namespace levin {

DeviceBatch to_device(const Batch& batch, const Device& device) {
    const int64_t tokens = batch.count * batch.length;
    DeviceBatch result{.ids = upload({tokens}, batch.inputs, device),
                       .targets = upload({tokens}, batch.targets, device),
                       .layout = {.batch = batch.count, .length = batch.length},
                       .counted = std::count_if(batch.targets.begin(), batch.targets.end(),
                                                [](int32_t t) { return t >= 0; })};
    if (!batch.cu_seqlens.empty())
        result.layout = {
            .batch = 1,
            .length = tokens,
            .cu_seqlens = upload({static_cast<int64_t>(batch.cu_seqlens.size())}, batch.cu_seqlens, device)};
    return result;
}

EvaluationResult evaluate(const LanguageModel& model, const Loader& loader, int64_t micro_batch,
                          int64_t batches, Communicator& ranks) {
    NoGradient off;
    const int64_t samples = batches > 0 ? std::min(batches * micro_batch, loader.samples_per_epoch())
                                        : loader.samples_per_epoch();
    double sum = 0, tokens = 0;
    for (int64_t first = ranks.rank() * micro_batch; first < samples; first += ranks.size() * micro_batch) {
        const DeviceBatch batch =
            to_device(loader.batch(first, std::min(micro_batch, samples - first)), model.device());
        sum += model.loss(batch.ids, batch.targets, batch.layout, {}).loss.value().item();
        tokens += static_cast<double>(batch.counted);
    }
    sum = sum_over(ranks, sum);
    tokens = sum_over(ranks, tokens);
    return {sum / std::max(1.0, tokens), static_cast<int64_t>(tokens)};
}

}  // namespace levin
