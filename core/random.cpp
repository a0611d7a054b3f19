#include "core/random.h"

#include "kernels/random.h"

namespace levin {

std::array<uint32_t, 4> philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
    const kernels::random::Words words =
        kernels::random::philox({counter[0], counter[1], counter[2], counter[3]}, key[0], key[1]);
    return {words.a, words.b, words.c, words.d};
}

Random::Random(uint64_t seed, std::string_view name)
    : key_{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)} {
    uint64_t hash = 0xcbf29ce484222325ull;  // FNV-1a
    for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ull;
    stream_ = {static_cast<uint32_t>(hash), static_cast<uint32_t>(hash >> 32)};
}

uint64_t Random::bits(uint64_t index) const {
    const auto r = philox(
        {static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), stream_[0], stream_[1]}, key_);
    return uint64_t{r[1]} << 32 | r[0];
}

double Random::uniform(uint64_t index) const { return static_cast<double>(bits(index) >> 11) * 0x1p-53; }

double Random::normal(uint64_t index) const {
    return kernels::random::normal(kernels::random::philox(
        {static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), stream_[0], stream_[1]}, key_[0],
        key_[1]));
}

void fill_normal(const Tensor& tensor, const Random& random, double deviation, uint64_t first_index,
                 int64_t row_step) {
    if (tensor.count() == 0) return;
    const bool flat = tensor.is_contiguous() && row_step == 0;
    const int64_t columns = flat ? tensor.count() : tensor.dim(-1);
    kernels::fill_normal(tensor.stream(),
                         {.rows = tensor.count() / columns,
                          .columns = columns,
                          .key = {random.key_[0], random.key_[1]},
                          .stream = {random.stream_[0], random.stream_[1]},
                          .first = first_index,
                          .row_step = static_cast<uint64_t>(row_step == 0 ? columns : row_step),
                          .deviation = deviation,
                          .dtype = tensor.dtype(),
                          .x = tensor.data(),
                          .x_stride = flat ? columns : tensor.row_stride()});
}

}  // namespace levin
