#include "launch/commands/bench/step_products.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <tuple>

#include "launch/commands/bench/turns.h"

namespace levin::bench {

namespace {

// Of one piece of the head's products: what a chunk costs more than a whole product is gone by then, and its
// logits still fit beside the model.
constexpr int64_t kHeadTokens = 32768;

// Strides count: a slice of a wider matrix may be slower.
auto key_of(const kernels::Gemm& g) {
    return std::tuple(g.transpose_a, g.transpose_b, g.m, g.n, g.k, g.dtype, g.c_dtype, g.lda, g.ldb, g.ldc,
                      g.beta != 0);
}

double flops_of(const kernels::Gemm& g) {
    return 2.0 * static_cast<double>(g.m) * static_cast<double>(g.n) * static_cast<double>(g.k);
}

// Places for operands in one block of memory, one behind the other and from the start again.
class Places {
public:
    void need(int64_t bytes) { largest_ = std::max(largest_, rounded(bytes)); }
    void allocate(DType type, const Device& device) {
        // Beyond the largest: several times the 50 MB of an H100's L2 cache.
        bytes_ = largest_ + (device.is_cuda() ? 256 << 20 : 0);
        memory_ = random_values({bytes_ / static_cast<int64_t>(size_of(type))}, type, device);
    }
    void* next(int64_t bytes) {
        if (at_ + rounded(bytes) > bytes_) at_ = 0;
        char* place = static_cast<char*>(memory_.data()) + at_;
        at_ += rounded(bytes);
        return place;
    }
    const Tensor& memory() const { return memory_; }

private:
    static int64_t rounded(int64_t bytes) { return (bytes + 4095) / 4096 * 4096; }
    int64_t largest_ = 0, bytes_ = 0, at_ = 0;
    Tensor memory_;
};

struct Bytes {
    int64_t a, b, c;
};
Bytes bytes_of(const kernels::Gemm& g) {
    const auto size = [](int64_t rows, int64_t stride, DType type) {
        return rows * stride * static_cast<int64_t>(size_of(type));
    };
    return {size(g.transpose_a ? g.k : g.m, g.lda, g.dtype), size(g.transpose_b ? g.n : g.k, g.ldb, g.dtype),
            size(g.m, g.ldc, g.c_dtype)};
}

// `observed` with the head's products in large pieces.
std::vector<kernels::Gemm> with_whole_head(const std::vector<kernels::Gemm>& observed, int64_t vocab,
                                           int64_t tokens, int64_t micro_batches) {
    std::vector<kernels::Gemm> products;
    std::map<std::tuple<bool, bool>, kernels::Gemm> head;  // its three kinds, by their transposes
    for (const kernels::Gemm& g : observed) {
        if (g.m == vocab || g.n == vocab || g.k == vocab)
            head.try_emplace({g.transpose_a, g.transpose_b}, g);
        else
            products.push_back(g);
    }
    for (int64_t batch = 0; batch < micro_batches; ++batch)
        for (int64_t begin = 0; begin < tokens; begin += kHeadTokens)
            for (auto [kind, g] : head) {
                const bool weight_gradient = g.m == vocab;
                (weight_gradient ? g.k : g.m) = std::min(kHeadTokens, tokens - begin);
                g.beta = weight_gradient && (batch > 0 || begin > 0) ? 1 : 0;
                products.push_back(g);
            }
    return products;
}

}  // namespace

std::string describe(const kernels::Gemm& g) {
    return fmt::format("gemm {}{} {} x {} x {} to {}{}", g.transpose_a ? 'T' : 'N', g.transpose_b ? 'T' : 'N',
                       g.m, g.n, g.k, to_string(g.c_dtype), g.beta != 0 ? ", added" : "");
}

StepProducts::StepProducts(const Device& device, const std::vector<kernels::Gemm>& observed, int64_t vocab,
                           int64_t tokens, int64_t micro_batches)
    : device_(device), products_(with_whole_head(observed, vocab, tokens, micro_batches)) {
    if (products_.empty()) return;
    Places a, b, c;
    for (const kernels::Gemm& g : products_) {
        const Bytes bytes = bytes_of(g);
        a.need(bytes.a);
        b.need(bytes.b);
        c.need(bytes.c);
    }
    for (Places* places : {&a, &b, &c}) places->allocate(products_.front().dtype, device);
    for (kernels::Gemm& g : products_) {
        const Bytes bytes = bytes_of(g);
        g.a = a.next(bytes.a);
        g.b = b.next(bytes.b);
        g.c = c.next(bytes.c);
    }
    a_ = a.memory();
    b_ = b.memory();
    c_ = c.memory();
}

void StepProducts::run() const {
    for (const kernels::Gemm& g : products_) kernels::gemm(a_.stream(), g);
}

double StepProducts::flops() const {
    double sum = 0;
    for (const kernels::Gemm& g : products_) sum += flops_of(g);
    return sum;
}

Table StepProducts::table() const {
    struct Kind {
        kernels::Gemm product;
        int64_t count = 0;
        double ms = 0;
    };
    std::map<decltype(key_of(kernels::Gemm{})), Kind> kinds;
    run();
    const Marks marks = run_marked(a_.stream(), [this](const auto& mark) {
        for (const kernels::Gemm& g : products_) {
            kernels::gemm(a_.stream(), g);
            mark();
        }
    });
    for (size_t i = 0; i < products_.size(); ++i) {
        Kind& kind = kinds[key_of(products_[i])];
        kind.product = products_[i];
        ++kind.count;
        kind.ms += marks[i + 1]->ms_since(*marks[i]);
    }
    Table table({"product", "count", "ms_each", "ms", "tflops"});
    double ms = 0;
    for (const auto& [key, kind] : kinds) {
        const double each = kind.ms / static_cast<double>(kind.count);
        ms += kind.ms;
        table.add({describe(kind.product), fmt::to_string(kind.count), fmt::format("{:.4f}", each),
                   fmt::format("{:.3f}", kind.ms),
                   fmt::format("{:.1f}", flops_of(kind.product) / each / 1e9)});
    }
    table.add({"all", "", "", fmt::format("{:.3f}", ms), fmt::format("{:.1f}", flops() / ms / 1e9)});
    return table;
}

}  // namespace levin::bench
