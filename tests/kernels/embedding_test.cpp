#include "kernels/embedding.h"

#include "tests/kernels/kernel_test.h"

namespace levin::kernels::test {
namespace {

using Values = std::vector<double>;

Values random_ids(size_t tokens, int vocab) {
    std::uniform_int_distribution<int> pick(0, vocab - 1);
    Values ids(tokens);
    for (double& id : ids) id = pick(generator());
    return ids;
}

TEST(Embedding, ForwardAndBackward) {
    for (const DType dtype : floating_types())
        for (const size_t width : {1, 16, 77, 256})
            for (const int64_t padding : {-1, 3}) {
                SCOPED_TRACE(
                    fmt::format("{} width {} padding {} seed {}", to_string(dtype), width, padding, seed()));
                const size_t tokens = 301, vocab = 23;
                const double scale = 2.5;
                const DType acc = accumulator_of(dtype);
                const Values ids = random_ids(tokens, static_cast<int>(vocab));
                const Values table = rounded(dtype, random_normal(vocab * width));
                const Values dy = rounded(dtype, random_normal(tokens * width));
                const Values old = rounded(acc, random_normal(vocab * width));
                Values y, dtable = old;
                for (size_t t = 0; t < tokens; ++t)
                    for (size_t c = 0; c < width; ++c) {
                        const size_t id = static_cast<size_t>(ids[t]);
                        y.push_back(scale * table[id * width + c]);
                        if (static_cast<int64_t>(id) != padding)
                            dtable[id * width + c] += scale * dy[t * width + c];
                    }
                const auto n = [](size_t v) { return static_cast<int64_t>(v); };
                const Buffer ids_buffer(DType::i32, ids), table_buffer(dtype, table), dy_buffer(dtype, dy);
                const Buffer y_buffer = Buffer::poisoned(dtype, tokens * width), dtable_buffer(acc, old);
                embedding_forward(stream(), {n(tokens), n(vocab), n(width), dtype, scale,
                                             ids_buffer.as<int32_t>(), table_buffer.data(), y_buffer.data()});
                EXPECT_LT(relative_error(y_buffer.read(), y), tolerance(dtype));
                embedding_backward(
                    stream(), {n(tokens), n(vocab), n(width), dtype, scale, padding, ids_buffer.as<int32_t>(),
                               dy_buffer.data(), dtable_buffer.data()});
                EXPECT_LT(relative_error(dtable_buffer.read(), dtable), tolerance(acc));
            }
}

// A frequent token is summed in token order, at any number of threads.
TEST(Embedding, GradientHasTheSameBitsAtAnyNumberOfThreads) {
    const size_t tokens = 2000, width = 100, vocab = 3;
    const Buffer ids(DType::i32, random_ids(tokens, 3)), dy(DType::f32, random_normal(tokens * width));
    Values first;
    for (int trial = 0; trial < 3; ++trial) {
        const Threads threads(trial + 1);
        const Buffer dtable(DType::f32, Values(vocab * width, 0.0));
        embedding_backward(stream(),
                           {2000, 3, 100, DType::f32, 1.0, -1, ids.as<int32_t>(), dy.data(), dtable.data()});
        if (trial == 0) first = dtable.read();
        EXPECT_EQ(dtable.read(), first);
    }
}

}  // namespace
}  // namespace levin::kernels::test
