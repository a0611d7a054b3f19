#include "trainer/evaluation.h"

#include <algorithm>

#include "core/transfer.h"
#include "parallel/agreement.h"
#include "parallel/context_parallel/chunks.h"

namespace levin {

DeviceBatch to_device(const Batch& batch, const Device& device, const Mesh* mesh) {
    const auto cp = static_cast<int>(mesh ? mesh->layout().cp : 1);
    const int chunk = mesh ? static_cast<int>(mesh->place().cp) : 0;
    DeviceBatch result;
    result.layout = chunk_layout(batch.count, batch.length, batch.cu_seqlens, chunk, cp, device);
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
    for (int64_t first = dealt.rank() * micro_batch; first < samples; first += dealt.size() * micro_batch) {
        const DeviceBatch batch =
            to_device(loader.batch(first, std::min(micro_batch, samples - first)), model.device(), mesh);
        sum += model.loss(batch.ids, batch.targets, batch.layout, {}).loss.value().item();
        tokens += static_cast<double>(batch.counted);
    }
    sum = sum_over(summed, sum);
    tokens = sum_over(summed, tokens);
    return {sum / std::max(1.0, tokens), static_cast<int64_t>(tokens)};
}

}  // namespace levin
