// What ranks compute of something they share, put together again: the same as the whole.
#include "kernels/rank_parts.h"

#include "kernels/cross_entropy.h"
#include "kernels/embedding.h"
#include "tests/kernels/kernel_test.h"

namespace levin::kernels::test {
namespace {

using Values = std::vector<double>;

Values columns(const Values& x, size_t width, size_t begin, size_t end) {
    Values part;
    for (size_t r = 0; r < x.size() / width; ++r)
        for (size_t c = begin; c < end; ++c) part.push_back(x[r * width + c]);
    return part;
}

TEST(RankParts, RowSumsAndScales) {
    for (const DType dtype : floating_types())
        for (const size_t width : {1, 24, 77, 512}) {
            SCOPED_TRACE(fmt::format("{} width {} seed {}", to_string(dtype), width, seed()));
            const DType acc = accumulator_of(dtype);
            const size_t rows = 13;
            const auto n = [](size_t v) { return static_cast<int64_t>(v); };
            const Values x = rounded(dtype, random_normal(rows * width)),
                         dy = rounded(dtype, random_normal(rows * width)),
                         old = rounded(dtype, random_normal(rows * width));
            Values squares(rows), factors(rows), coefficients(rows), scaled(x.size()), added(x.size());
            for (size_t r = 0; r < rows; ++r) {
                double dot = 0;
                for (size_t c = 0; c < width; ++c) {
                    squares[r] += x[r * width + c] * x[r * width + c];
                    dot += dy[r * width + c] * x[r * width + c];
                }
                factors[r] = 1 / std::sqrt(squares[r] / 2048 + 1e-3);
                coefficients[r] = -factors[r] * factors[r] * dot / 2048;
                for (size_t c = 0; c < width; ++c) {
                    scaled[r * width + c] = factors[r] * x[r * width + c];
                    added[r * width + c] = scaled[r * width + c] + old[r * width + c];
                }
            }
            const Buffer x_buffer(dtype, x), dy_buffer(dtype, dy), sum = Buffer::poisoned(acc, rows),
                                                                   coefficient = Buffer::poisoned(acc, rows),
                                                                   y = Buffer::poisoned(dtype, x.size());
            const Buffer sum_buffer(dtype, old);
            row_squares(stream(), {n(rows), n(width), dtype, x_buffer.data(), n(width), sum.data()});
            EXPECT_LT(relative_error(sum.read(), squares), tolerance(acc));
            rms_factor(stream(), {n(rows), 2048, 1e-3, acc, sum.data(), sum.data()});
            EXPECT_LT(relative_error(sum.read(), factors), tolerance(acc));
            rms_factor_gradient(stream(), {n(rows), n(width), 2048, dtype, dy_buffer.data(), n(width),
                                           x_buffer.data(), n(width), sum.data(), coefficient.data()});
            EXPECT_LT(relative_error(coefficient.read(), coefficients), 10 * tolerance(acc));
            row_scale(stream(), {n(rows), n(width), dtype, sum.data(), x_buffer.data(), n(width), 0, y.data(),
                                 n(width)});
            EXPECT_LT(relative_error(y.read(), scaled), tolerance(dtype));
            row_scale(stream(), {n(rows), n(width), dtype, sum.data(), x_buffer.data(), n(width), 1,
                                 sum_buffer.data(), n(width)});
            EXPECT_LT(relative_error(sum_buffer.read(), added), tolerance(dtype));
        }
}

TEST(RankParts, CrossEntropyOfADividedVocabulary) {
    for (const DType dtype : floating_types())
        for (const double spread : {2.0, 200.0}) {
            SCOPED_TRACE(fmt::format("{} spread {} seed {}", to_string(dtype), spread, seed()));
            const DType acc = accumulator_of(dtype);
            // Vocabulary 101 in parts of 40 columns with strides for padding; the last part is all padding.
            const size_t rows = 9, vocab = 101, local = 40, ranks = 4;
            const auto n = [](size_t v) { return static_cast<int64_t>(v); };
            const Values logits = rounded(dtype, random_normal(rows * vocab, spread));
            Values targets(rows);
            for (size_t r = 0; r < rows; ++r)
                targets[r] = r == 4 ? -1 : static_cast<double>((r * 37) % vocab);
            const Buffer whole(dtype, logits), ids(DType::i32, targets), loss = Buffer::poisoned(acc, rows);
            cross_entropy(stream(), {n(rows), n(vocab), dtype, 1e-2, 0.3, whole.data(), n(vocab),
                                     ids.as<int32_t>(), loss.data()});
            Values parts;
            std::vector<Values> laid;
            for (size_t p = 0; p < ranks; ++p) {
                const size_t begin = std::min(p * local, vocab), end = std::min(begin + local, vocab);
                Values z(rows * local, 8192);  // would win if padding were looked at
                for (size_t r = 0; r < rows; ++r)
                    for (size_t c = begin; c < end; ++c) z[r * local + c - begin] = logits[r * vocab + c];
                laid.push_back(z);
                const Buffer z_buffer(dtype, z), part = Buffer::poisoned(acc, 3 * rows);
                cross_entropy_parts(stream(), {n(rows), n(end - begin), n(begin), dtype, z_buffer.data(),
                                               n(local), ids.as<int32_t>(), part.data()});
                for (const double value : part.read()) parts.push_back(value);
            }
            const Buffer all(acc, parts);
            for (size_t p = 0; p < ranks; ++p) {
                const size_t begin = std::min(p * local, vocab), end = std::min(begin + local, vocab);
                const Buffer z(dtype, laid[p]), joined = Buffer::poisoned(acc, rows);
                cross_entropy_join(stream(),
                                   {n(ranks), n(rows), n(end - begin), n(begin), dtype, 1e-2, 0.3, all.data(),
                                    z.data(), n(local), ids.as<int32_t>(), joined.data()});
                EXPECT_LT(relative_error(joined.read(), loss.read()), tolerance(acc));
                const Values gradient = z.read();
                if (end > begin) {
                    EXPECT_LT(relative_error(columns(gradient, local, 0, end - begin),
                                             columns(whole.read(), vocab, begin, end)),
                              tolerance(dtype));
                }
                for (size_t r = 0; r < rows; ++r)
                    for (size_t c = end - begin; c < local; ++c) EXPECT_EQ(gradient[r * local + c], 0);
            }
        }
}

TEST(RankParts, ADividedEmbedding) {
    for (const DType dtype : floating_types()) {
        const DType acc = accumulator_of(dtype);
        const size_t width = 24, vocab = 23, local = 9;
        const auto n = [](size_t v) { return static_cast<int64_t>(v); };
        Values ids;
        for (size_t t = 0; t < 200; ++t) ids.push_back(static_cast<double>((t * 7) % vocab));
        const Values table = rounded(dtype, random_normal(vocab * width)),
                     dy = rounded(dtype, random_normal(ids.size() * width));
        const Buffer id_buffer(DType::i32, ids), dy_buffer(dtype, dy);
        Values sum(ids.size() * width, 0.0), y, dtable(vocab * width, 0.0);
        for (size_t t = 0; t < ids.size(); ++t)
            for (size_t c = 0; c < width; ++c) {
                y.push_back(2 * table[static_cast<size_t>(ids[t]) * width + c]);
                if (ids[t] != 5) dtable[static_cast<size_t>(ids[t]) * width + c] += 2 * dy[t * width + c];
            }
        for (size_t first = 0; first < vocab; first += local) {
            const size_t rows = std::min(local, vocab - first);
            const Buffer part(dtype, Values(table.begin() + static_cast<int64_t>(first * width),
                                            table.begin() + static_cast<int64_t>((first + rows) * width)));
            const Buffer out = Buffer::poisoned(dtype, y.size()), dpart(acc, Values(rows * width, 0.0));
            embedding_forward(stream(), {n(ids.size()), n(rows), n(width), dtype, 2, id_buffer.as<int32_t>(),
                                         part.data(), out.data(), n(first)});
            const Values mine = out.read();
            for (size_t i = 0; i < sum.size(); ++i) sum[i] += mine[i];
            embedding_backward(stream(),
                               {n(ids.size()), n(rows), n(width), dtype, 2, 5, id_buffer.as<int32_t>(),
                                dy_buffer.data(), dpart.data(), n(first), true});
            EXPECT_LT(relative_error(dpart.read(),
                                     Values(dtable.begin() + static_cast<int64_t>(first * width),
                                            dtable.begin() + static_cast<int64_t>((first + rows) * width))),
                      tolerance(acc));
        }
        EXPECT_LT(relative_error(sum, rounded(dtype, y)), tolerance(dtype));
    }
}

TEST(RankParts, StatesOfEarlierChunks) {
    for (const DType acc : {DType::f64, DType::f32})
        for (const size_t parts : {1, 3, 70}) {
            const size_t sequences = 2, heads = 3, elements = 35;
            const auto n = [](size_t v) { return static_cast<int64_t>(v); };
            const Values slopes = rounded(DType::f32, {0.01, 0.5, 0});
            const Values states = rounded(acc, random_normal(parts * sequences * heads * elements));
            std::vector<int64_t> distance;
            for (size_t p = 0; p < parts; ++p) distance.push_back(p % 4 == 2 ? -1 : n(parts - 1 - p) * 7);
            Values expected(sequences * heads * elements, 0.0);
            for (size_t p = 0; p < parts; ++p)
                for (size_t i = 0; i < expected.size(); ++i)
                    if (distance[p] >= 0)
                        expected[i] +=
                            std::exp(-slopes[i / elements % heads] * static_cast<double>(distance[p])) *
                            states[p * expected.size() + i];
            const Buffer in(acc, states), slope_buffer(DType::f32, slopes),
                out = Buffer::poisoned(acc, expected.size());
            state_sum(stream(), {n(parts), n(sequences), n(heads), n(elements), acc, slope_buffer.as<float>(),
                                 distance.data(), in.data(), out.data()});
            EXPECT_LT(relative_error(out.read(), expected), 4 * tolerance(acc));
        }
}

}  // namespace
}  // namespace levin::kernels::test
