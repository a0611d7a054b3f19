#include "core/random.h"

#include <cmath>
#include <numbers>

#include "kernels/base/parallel_for.h"

namespace levin {

std::array<uint32_t, 4> philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
    for (int round = 0; round < 10; ++round) {
        const uint64_t a = uint64_t{0xD2511F53} * counter[0], b = uint64_t{0xCD9E8D57} * counter[2];
        counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(b),
                   static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(a)};
        key = {key[0] + 0x9E3779B9u, key[1] + 0xBB67AE85u};
    }
    return counter;
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
    const auto r = philox(
        {static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), stream_[0], stream_[1]}, key_);
    const double u = (static_cast<double>((uint64_t{r[1]} << 32 | r[0]) >> 11) + 1) * 0x1p-53;  // (0, 1]
    const double v = static_cast<double>((uint64_t{r[3]} << 32 | r[2]) >> 11) * 0x1p-53;
    return std::sqrt(-2 * std::log(u)) * std::cos(2 * std::numbers::pi * v);
}

void fill_normal(Tensor& tensor, const Random& random, double deviation, uint64_t first_index) {
    Tensor host = Tensor::empty(tensor.shape(), DType::f64);
    double* values = host.data<double>();
    parallel_for(tensor.count(), 4096, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
            values[i] = deviation * random.normal(first_index + static_cast<uint64_t>(i));
    });
    tensor.copy_from(host.to(tensor.dtype()));
}

}  // namespace levin
