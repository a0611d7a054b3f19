#include "kernels/softmax_attention.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <tuple>

#include "tests/kernels/kernel_test.h"

namespace levin::kernels::test {
namespace {

using Values = std::vector<double>;
const std::vector<DType> kTypes = {DType::f64, DType::f32, DType::bf16};

struct Problem {
    int64_t batch, query_length, key_length, heads, kv_heads, head_dim;
    double scale = 0.3;
    Values borders = {};
    int64_t queries() const { return batch * query_length; }
    int64_t keys() const { return batch * key_length; }
    int64_t query_width() const { return heads * head_dim; }
    int64_t key_width() const { return kv_heads * head_dim; }
    // First key that a query of the stream sees, and one behind the last.
    std::pair<int64_t, int64_t> visible(int64_t query) const {
        const int64_t row = query / query_length, i = query % query_length;
        int64_t first = row * key_length;
        for (const double border : borders)
            if (border <= query) first = static_cast<int64_t>(border);
        return {first, row * key_length + i + key_length - query_length + 1};
    }
};
struct Inputs {
    Values q, k, v, d_o;
};
struct Outputs {
    Values o, log_sum_exp, dq, dk, dv;
};

Inputs random_inputs(const Problem& p, DType dtype) {
    return {rounded(dtype, random_normal(p.queries() * p.query_width())),
            rounded(dtype, random_normal(p.keys() * p.key_width())),
            rounded(dtype, random_normal(p.keys() * p.key_width())),
            rounded(dtype, random_normal(p.queries() * p.query_width()))};
}

// Every probability written out.
Outputs reference(const Problem& p, const Inputs& in) {
    Outputs out;
    out.o.assign(in.q.size(), 0), out.dq = out.o;
    out.dk.assign(in.k.size(), 0), out.dv = out.dk;
    out.log_sum_exp.assign(p.queries() * p.heads, 0);
    const int64_t dim = p.head_dim;
    for (int64_t i = 0; i < p.queries(); ++i)
        for (int64_t head = 0; head < p.heads; ++head) {
            const int64_t q = (i * p.heads + head) * dim, kv_head = head / (p.heads / p.kv_heads);
            const auto [first, end] = p.visible(i);
            const auto key = [&, kv_head = kv_head](int64_t j) { return (j * p.kv_heads + kv_head) * dim; };
            Values probability;
            double highest = -1e300, sum = 0;
            for (int64_t j = first; j < end; ++j) {
                double score = 0;
                for (int64_t c = 0; c < dim; ++c) score += p.scale * in.q[q + c] * in.k[key(j) + c];
                probability.push_back(score);
                highest = std::max(highest, score);
            }
            for (double& x : probability) sum += x = std::exp(x - highest);
            out.log_sum_exp[(i / p.query_length * p.heads + head) * p.query_length + i % p.query_length] =
                highest + std::log(sum);
            double delta = 0;
            for (int64_t j = first; j < end; ++j) {
                const double w = probability[j - first] /= sum;
                for (int64_t c = 0; c < dim; ++c) {
                    out.o[q + c] += w * in.v[key(j) + c];
                    out.dv[key(j) + c] += w * in.d_o[q + c];
                    delta += w * in.v[key(j) + c] * in.d_o[q + c];
                }
            }
            for (int64_t j = first; j < end; ++j) {
                double d = 0;
                for (int64_t c = 0; c < dim; ++c) d += in.v[key(j) + c] * in.d_o[q + c];
                const double d_score = p.scale * probability[j - first] * (d - delta);
                for (int64_t c = 0; c < dim; ++c) {
                    out.dq[q + c] += d_score * in.k[key(j) + c];
                    out.dk[key(j) + c] += d_score * in.q[q + c];
                }
            }
        }
    return out;
}

Values strided(const Values& x, int64_t width, int64_t gap) {
    Values y;
    for (size_t i = 0; i < x.size(); i += width) {
        y.insert(y.end(), x.begin() + i, x.begin() + i + width);
        y.insert(y.end(), gap, std::nan(""));
    }
    return y;
}
Values dense(const Values& y, int64_t width, int64_t gap) {
    Values x;
    for (size_t i = 0; i < y.size(); i += width + gap) {
        x.insert(x.end(), y.begin() + i, y.begin() + i + width);
        for (int64_t c = width; c < width + gap; ++c)
            EXPECT_TRUE(std::isnan(y[i + c])) << "wrote beside its columns";
    }
    return x;
}

Outputs run(const Problem& p, DType dtype, const Inputs& in) {
    const int64_t qw = p.query_width(), kw = p.key_width();
    const Buffer q(dtype, strided(in.q, qw, 1)), k(dtype, strided(in.k, kw, 2)),
        v(dtype, strided(in.v, kw, 3)), d_o(dtype, in.d_o), borders(DType::i32, p.borders),
        o = Buffer::poisoned(dtype, in.q.size()),
        log_sum_exp = Buffer::poisoned(accumulator_of(dtype), p.queries() * p.heads),
        dq = Buffer::poisoned(dtype, strided(in.q, qw, 4).size()),
        dk = Buffer::poisoned(dtype, strided(in.k, kw, 5).size()),
        dv = Buffer::poisoned(dtype, strided(in.v, kw, 6).size());
    SoftmaxAttentionShape shape{p.batch,    p.query_length, p.key_length, p.heads,
                                p.kv_heads, p.head_dim,     dtype,        p.scale};
    if (!p.borders.empty())
        shape.cu_seqlens = borders.as<int32_t>(),
        shape.documents = static_cast<int64_t>(p.borders.size()) - 1;
    softmax_attention_forward(stream(), {shape, q.data(), qw + 1, k.data(), kw + 2, v.data(), kw + 3,
                                         o.data(), log_sum_exp.data()});
    softmax_attention_backward(
        stream(), {shape, q.data(), qw + 1, k.data(), kw + 2, v.data(), kw + 3, o.data(), log_sum_exp.data(),
                   d_o.data(), dq.data(), qw + 4, dk.data(), kw + 5, dv.data(), kw + 6});
    return {o.read(), log_sum_exp.read(), dense(dq.read(), qw, 4), dense(dk.read(), kw, 5),
            dense(dv.read(), kw, 6)};
}

void check(const Problem& p, DType dtype) {
    SCOPED_TRACE("seed " + std::to_string(seed()) + " " + to_string(dtype) + " queries " +
                 std::to_string(p.query_length) + " keys " + std::to_string(p.key_length) + " heads " +
                 std::to_string(p.heads) + "/" + std::to_string(p.kv_heads) + " dim " +
                 std::to_string(p.head_dim));
    const Inputs in = random_inputs(p, dtype);
    const Outputs got = run(p, dtype, in), expected = reference(p, in);
    const double bound = tolerance(dtype), statistics = tolerance(accumulator_of(dtype));
    EXPECT_LT(relative_error(got.o, expected.o), bound);
    EXPECT_LT(relative_error(got.log_sum_exp, expected.log_sum_exp), 2 * statistics);
    EXPECT_LT(relative_error(got.dv, expected.dv), bound);
    if (p.key_length == 1) return;  // with one key dq and dk are zero but for rounding
    EXPECT_LT(relative_error(got.dq, expected.dq), 2 * bound);
    EXPECT_LT(relative_error(got.dk, expected.dk), 2 * bound);
}

TEST(SoftmaxAttention, ReferenceGradientsByDifferences) {
    const Problem p{1, 4, 6, 2, 1, 3};
    Inputs in = random_inputs(p, DType::f64);
    const Outputs out = reference(p, in);
    const auto differences = [&](Values& x) {
        Values gradient;
        for (double& value : x) {
            const double saved = value, h = 1e-5;
            double sum = 0;
            for (const double sign : {1.0, -1.0}) {
                value = saved + sign * h;
                const Values o = reference(p, in).o;
                for (size_t i = 0; i < o.size(); ++i) sum += sign * o[i] * in.d_o[i] / (2 * h);
            }
            value = saved;
            gradient.push_back(sum);
        }
        return gradient;
    };
    EXPECT_LT(relative_error(out.dq, differences(in.q)), 1e-7);
    EXPECT_LT(relative_error(out.dk, differences(in.k)), 1e-7);
    EXPECT_LT(relative_error(out.dv, differences(in.v)), 1e-7);
}

TEST(SoftmaxAttention, Lengths) {
    for (const DType dtype : kTypes)
        for (const int64_t length : {1, 2, 16, 63, 64, 65, 127, 128, 129, 200})
            check({2, length, length, 2, 2, 12}, dtype);
}

TEST(SoftmaxAttention, GroupedQueriesAndWidths) {
    for (const DType dtype : kTypes)
        for (const auto& [heads, kv_heads, dim] : std::vector<std::tuple<int64_t, int64_t, int64_t>>{
                 {4, 1, 5}, {6, 2, 16}, {3, 3, 64}, {2, 1, 128}})
            check({1, 70, 70, heads, kv_heads, dim, 1 / std::sqrt(static_cast<double>(dim))}, dtype);
}

TEST(SoftmaxAttention, FewerQueriesThanKeys) {
    for (const DType dtype : kTypes)
        for (const auto& [queries, keys] : std::vector<std::pair<int64_t, int64_t>>{
                 {1, 2}, {1, 64}, {1, 200}, {5, 66}, {65, 130}, {70, 75}})
            check({2, queries, keys, 4, 2, 10}, dtype);
}

TEST(SoftmaxAttention, PackedDocuments) {
    for (int border = 0; border <= 130; border += border < 66 ? 1 : 16) {
        Problem p{1, 140, 140, 2, 1, 4};
        p.borders = {0,  static_cast<double>(border), static_cast<double>(border), border + 1.0, 135, 140,
                     140};
        check(p, kTypes[border % 3]);
    }
}

// Scores of 1e4 would overflow without the running maximum; the highest one may come first, last or in
// between.
TEST(SoftmaxAttention, LargeScores) {
    for (const int64_t where : {0, 70, 149}) {
        const Problem p{1, 150, 150, 1, 1, 4, 1};
        Inputs in = random_inputs(p, DType::f32);
        for (int64_t c = 0; c < 4; ++c) in.k[where * 4 + c] = 5000;
        for (double& x : in.q) x = std::abs(x) + 0.5;
        in.q = rounded(DType::f32, in.q);
        EXPECT_LT(relative_error(run(p, DType::f32, in).o, reference(p, in).o), 1e-5);
    }
}

TEST(SoftmaxAttention, SameBits) {
    const int threads = omp_get_max_threads();
    for (const DType dtype : kTypes) {
        Problem p{1, 300, 300, 4, 2, 16};
        p.borders = {0, 10, 150, 300};
        const Inputs in = random_inputs(p, dtype);
        omp_set_num_threads(1);
        const Outputs first = run(p, dtype, in);
        for (const int now : {1, 2, 5}) {
            omp_set_num_threads(now);
            const Outputs again = run(p, dtype, in);
            EXPECT_EQ(again.o, first.o);
            EXPECT_EQ(again.log_sum_exp, first.log_sum_exp);
            EXPECT_EQ(again.dq, first.dq);
            EXPECT_EQ(again.dk, first.dk);
            EXPECT_EQ(again.dv, first.dv);
        }
    }
    omp_set_num_threads(threads);
}

TEST(SoftmaxAttention, RefusesMoreQueriesThanKeys) {
    const Buffer x(DType::f32, Values(64, 0)), o = Buffer::poisoned(DType::f32, 64);
    const SoftmaxAttentionShape shape{1, 8, 4, 1, 1, 4, DType::f32, 1};
    EXPECT_THROW(softmax_attention_forward(stream(),
                                           {shape, x.data(), 4, x.data(), 4, x.data(), 4, o.data(), nullptr}),
                 Error);
}

}  // namespace
}  // namespace levin::kernels::test
