// One token a sequence: products with their norms, gates and gated outputs, attention with its state, the
// next token. The shapes reach a GPU's fused kernels and those that take what these do not.
#include "kernels/decode.h"

#include <algorithm>
#include <array>

#include "tests/kernels/kernel_test.h"

namespace levin::kernels::test {
namespace {

using Values = std::vector<double>;
using Input = DecodeLinear::Input;

constexpr double kEps = 1e-6;

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

struct Product {
    DType dtype;
    size_t batch, width, outputs;
    Input input = Input::plain;
    bool glu = false, branch = false, h = false, add = false;
    Activation gate = Activation::none, activation = Activation::none;
    size_t table = 0;  // rows of which the batch takes some, scaled; 0: x is the batch's rows
};

// The input of the product in float64.
Values input_of(const Product& p, const Values& x, const Values& branch, const Values& u, Values& h) {
    h = x;
    for (size_t i = 0; i < (p.branch ? h.size() : 0); ++i) h[i] += branch[i];
    h = rounded(p.dtype, h);
    if (p.input == Input::plain) return x;
    Values input = h;
    for (size_t b = 0; b < p.batch; ++b) {
        double squares = 0;
        for (size_t i = 0; i < p.width; ++i) squares += h[b * p.width + i] * h[b * p.width + i];
        const double r = 1 / std::sqrt(squares / static_cast<double>(p.width) + kEps);
        for (size_t i = 0; i < p.width; ++i) {
            double& value = input[b * p.width + i];
            value *= r;
            if (p.input == Input::gated_norm)
                value *= p.gate == Activation::none ? u[b * p.width + i] : sigmoid(u[b * p.width + i]);
        }
    }
    return input;
}

Values product_of(const Product& p, const Values& input, const Values& weight) {
    Values y(p.batch * p.outputs);
    const auto row = [&](size_t b, size_t n) {
        double sum = 0;
        for (size_t i = 0; i < p.width; ++i) sum += input[b * p.width + i] * weight[n * p.width + i];
        return sum;
    };
#pragma omp parallel for
    for (size_t n = 0; n < p.outputs; ++n)
        for (size_t b = 0; b < p.batch; ++b) {
            double value = row(b, n);
            if (p.activation == Activation::silu) value *= sigmoid(value);
            if (p.activation == Activation::relu) value = std::max(value, 0.0);
            if (p.glu) value *= row(b, p.outputs + n);
            y[b * p.outputs + n] = value;
        }
    return y;
}

void check(const Product& p) {
    SCOPED_TRACE(fmt::format("{} batch {} width {} outputs {} input {} glu {} branch {} gate {} seed {}",
                             to_string(p.dtype), p.batch, p.width, p.outputs, static_cast<int>(p.input),
                             p.glu, p.branch, static_cast<int>(p.gate), seed()));
    const size_t u_stride = p.width + 24, rows = p.outputs * (p.glu ? 2 : 1);
    const double scale = std::sqrt(static_cast<float>(p.width));
    const Values table =
        rounded(p.dtype, random_normal((p.table ? p.table : p.batch) * p.width, p.table ? 2 / scale : 2));
    Values x = table, ids;
    for (size_t b = 0; b < (p.table ? p.batch : 0); ++b)
        ids.push_back(static_cast<double>(generator()() % p.table));
    if (p.table) {
        x.clear();
        for (const double id : ids)
            for (size_t i = 0; i < p.width; ++i)
                x.push_back(static_cast<float>(scale) * table[static_cast<size_t>(id) * p.width + i]);
        x = rounded(p.dtype, x);
    }
    const Values branch = rounded(p.dtype, random_normal(p.batch * p.width)),
                 u = rounded(p.dtype, random_normal(p.batch * p.width)),
                 weight = rounded(p.dtype,
                                  random_normal(rows * p.width, 1 / std::sqrt(static_cast<double>(p.width))));
    const Values old = rounded(p.dtype, random_normal(p.batch * p.outputs));
    Values h, expected = product_of(p, input_of(p, x, branch, u, h), weight);
    for (size_t i = 0; p.add && i < expected.size(); ++i) expected[i] += old[i];
    const Buffer x_buffer(p.dtype, table), ids_buffer(DType::i32, ids), branch_buffer(p.dtype, branch),
        weight_buffer(p.dtype, weight), u_buffer(p.dtype, spread(u, p.width, u_stride));
    const auto n = [](size_t value) { return static_cast<int64_t>(value); };
    const Buffer workspace =
        Buffer::poisoned(DType::f32, decode_workspace(n(p.batch), n(p.width), n(p.outputs), p.dtype) / 4 + 1);
    std::array<Values, 2> results;
    for (Values& result : results) {
        const Buffer y = p.add ? Buffer(p.dtype, old) : Buffer::poisoned(p.dtype, p.batch * p.outputs),
                     h_buffer = Buffer::poisoned(p.dtype, p.batch * p.width);
        decode_linear(stream(), {.batch = n(p.batch),
                                 .width = n(p.width),
                                 .outputs = n(p.outputs),
                                 .dtype = p.dtype,
                                 .input = p.input,
                                 .x = x_buffer.data(),
                                 .branch = p.branch ? branch_buffer.data() : nullptr,
                                 .h = p.h ? h_buffer.data() : nullptr,
                                 .u = p.input == Input::gated_norm ? u_buffer.data() : nullptr,
                                 .u_stride = n(u_stride),
                                 .gate = p.gate,
                                 .eps = kEps,
                                 .weight = weight_buffer.data(),
                                 .glu = p.glu,
                                 .activation = p.activation,
                                 .y = y.data(),
                                 .workspace = workspace.data(),
                                 .add = p.add,
                                 .ids = p.table ? ids_buffer.as<int32_t>() : nullptr,
                                 .scale = scale});
        result = y.read();
        if (p.h) {
            EXPECT_EQ(h_buffer.read(), h);
        }
    }
    EXPECT_EQ(results[0], results[1]);
    EXPECT_LT(relative_error(results[0], expected), p.dtype == DType::f32 ? 1e-5 : tolerance(p.dtype));
    // Each row by itself: a row of the batch that is missing would not show among 64.
    for (size_t b = 0; b < p.batch; ++b) {
        const auto part = [&](const Values& all) {
            const auto begin = all.begin() + n(b * p.outputs);
            return Values(begin, begin + n(p.outputs));
        };
        EXPECT_LT(relative_error(part(results[0]), part(expected)),
                  p.dtype == DType::f32 ? 2e-5 : 2 * tolerance(p.dtype))
            << "row " << b;
    }
}

TEST(DecodeLinear, EveryInput) {
    for (const DType dtype : floating_types())
        for (const size_t batch : {1, 2, 3, 8, 17, 64}) {
            Product p{.dtype = dtype, .batch = batch, .width = 520, .outputs = 200};
            check(p);
            p.input = Input::norm;
            check(p);
            p.branch = p.h = true;
            check(p);
            p.branch = false;
            check(p);
            p.table = 37;
            check(p);
            p.h = false;
            check(p);
            p.table = 0;
            p.input = Input::gated_norm;
            check(p);
            p.gate = Activation::sigmoid;
            check(p);
            p.add = true;
            check(p);
            p.input = Input::plain;
            check(p);
        }
}

TEST(DecodeLinear, GatedOutputs) {
    for (const size_t batch : {1, 2, 3, 8, 17, 64})
        for (const Activation activation : {Activation::none, Activation::silu, Activation::relu}) {
            Product p{.dtype = DType::bf16, .batch = batch, .width = 264, .outputs = 352};
            p.glu = p.branch = p.h = true;
            p.input = Input::norm;
            p.activation = activation;
            check(p);
            p.outputs = 37;
            check(p);
            p.branch = p.h = false;
            for (const size_t outputs : {37, 20, 352, 2500}) {
                p.outputs = outputs;
                check(p);
            }
        }
}

// Widths with ragged ends, very narrow or not divisible by 8; outputs of less than a tile of 128, odd ones,
// and many; batches on both sides of 64.
TEST(DecodeLinear, OddShapes) {
    struct Shape {
        size_t batch, width, outputs;
    };
    for (const auto& [batch, width, outputs] : std::initializer_list<Shape>{{5, 8, 136},
                                                                            {64, 24, 2000},
                                                                            {64, 100, 96},
                                                                            {9, 1030, 72},
                                                                            {33, 1032, 37},
                                                                            {64, 704, 16},
                                                                            {64, 5632, 136},
                                                                            {7, 2048, 5000},
                                                                            {64, 2048, 5000},
                                                                            {40, 4096, 2600},
                                                                            {64, 12288, 24},
                                                                            {2, 1024, 9000},
                                                                            {65, 256, 128}})
        for (const Input input : {Input::plain, Input::norm, Input::gated_norm}) {
            Product p{.dtype = DType::bf16, .batch = batch, .width = width, .outputs = outputs};
            p.input = input;
            check(p);
            if (input != Input::norm) continue;
            p.branch = p.h = true;
            check(p);
        }
}

struct Heads {
    DType dtype;
    size_t batch, heads, key_dim, value_dim;
    bool rotary = false;
    Activation activation = Activation::silu;
};

void check(const Heads& a) {
    SCOPED_TRACE(fmt::format("{} batch {} heads {} key {} value {} rotary {} seed {}", to_string(a.dtype),
                             a.batch, a.heads, a.key_dim, a.value_dim, a.rotary, seed()));
    const DType acc = accumulator_of(a.dtype);
    const size_t key_width = a.key_dim * (a.rotary ? 2 : 1), v_at = 2 * a.heads * a.key_dim,
                 stride = v_at + a.heads * a.value_dim + 8, states = a.batch * a.heads;
    const int64_t position = 1234;
    const Values qkv = rounded(a.dtype, random_normal(a.batch * stride)),
                 state = rounded(acc, random_normal(states * key_width * a.value_dim));
    Values slopes, theta = rounded(acc, random_normal(a.heads * a.key_dim));
    for (size_t h = 0; h < a.heads; ++h) slopes.push_back(1.0 / static_cast<double>(2 + h));
    slopes = rounded(DType::f32, slopes);
    Values expected_state = state, expected(states * a.value_dim);
    const auto activated = [&](double x) { return a.activation == Activation::silu ? x * sigmoid(x) : x; };
    for (size_t b = 0; b < a.batch; ++b)
        for (size_t h = 0; h < a.heads; ++h) {
            Values q(key_width), k(key_width);
            for (size_t i = 0; i < a.key_dim; ++i) {
                const size_t at = b * stride + h * a.key_dim + i;
                const double angle = theta[h * a.key_dim + i] * static_cast<double>(position);
                q[i] = activated(qkv[at]), k[i] = activated(qkv[at + a.heads * a.key_dim]);
                if (!a.rotary) continue;
                q[a.key_dim + i] = q[i] * std::sin(angle), k[a.key_dim + i] = k[i] * std::sin(angle);
                q[i] *= std::cos(angle), k[i] *= std::cos(angle);
            }
            for (size_t i = 0; i < key_width; ++i)
                for (size_t j = 0; j < a.value_dim; ++j) {
                    double& s = expected_state[((b * a.heads + h) * key_width + i) * a.value_dim + j];
                    s = std::exp(-slopes[h]) * s + k[i] * qkv[b * stride + v_at + h * a.value_dim + j];
                    expected[(b * a.heads + h) * a.value_dim + j] += q[i] * s;
                }
        }
    const Buffer qkv_buffer(a.dtype, qkv), slopes_buffer(DType::f32, slopes), theta_buffer(acc, theta);
    const Buffer position_buffer(DType::i32, {static_cast<double>(position), 0});  // as one i64
    std::array<Values, 2> results, new_states;
    for (size_t run = 0; run < 2; ++run) {
        const Buffer state_buffer(acc, state), o = Buffer::poisoned(a.dtype, expected.size());
        decode_attention(stream(), {.batch = static_cast<int64_t>(a.batch),
                                    .heads = static_cast<int64_t>(a.heads),
                                    .key_dim = static_cast<int64_t>(a.key_dim),
                                    .value_dim = static_cast<int64_t>(a.value_dim),
                                    .dtype = a.dtype,
                                    .qk_activation = a.activation,
                                    .v_activation = Activation::none,
                                    .slopes = slopes_buffer.as<float>(),
                                    .theta = a.rotary ? theta_buffer.data() : nullptr,
                                    .position = position_buffer.as<int64_t>(),
                                    .q = qkv_buffer.data(),
                                    .k = qkv_buffer.at(a.heads * a.key_dim),
                                    .v = qkv_buffer.at(v_at),
                                    .stride = static_cast<int64_t>(stride),
                                    .state = state_buffer.data(),
                                    .o = o.data()});
        results[run] = o.read();
        new_states[run] = state_buffer.read();
    }
    EXPECT_EQ(results[0], results[1]);
    EXPECT_EQ(new_states[0], new_states[1]);
    // Angles of f32 frequencies are exact to 1e-5 rad.
    const double f32 = a.rotary ? 3e-5 : 3e-6;
    EXPECT_LT(relative_error(results[0], expected), a.dtype == DType::f32 ? f32 : tolerance(a.dtype));
    EXPECT_LT(relative_error(new_states[0], expected_state), acc == DType::f32 ? f32 : 1e-12);
}

TEST(DecodeAttention, StatesAndOutputs) {
    for (const DType dtype : floating_types())
        for (const bool rotary : {false, true}) {
            check(Heads{dtype, 1, 3, 64, 64, rotary});
            check(Heads{dtype, 3, 2, 128, 128, rotary});
            check(Heads{dtype, 2, 2, 24, 50, rotary, Activation::none});
        }
}

// Enough heads to fill a GPU more than once.
TEST(DecodeAttention, ManySequences) {
    for (const bool rotary : {false, true})
        for (const size_t value_dim : {32, 64, 96, 128, 256})
            check(Heads{DType::bf16, 64, 5, 64, value_dim, rotary});
    for (const size_t key_dim : {64, 96, 128}) check(Heads{DType::bf16, 37, 8, key_dim, 128});
    check(Heads{DType::bf16, 37, 8, 128, 128, true, Activation::none});
    check(Heads{DType::bf16, 37, 8, 20, 64});
}

// The largest logit of each sequence, the first of equal ones.
TEST(DecodeAdvance, MostLikelyTokens) {
    for (const DType dtype : floating_types())
        for (const size_t vocab : {1, 37, 1000, 64000, 70001}) {
            SCOPED_TRACE(fmt::format("{} {} seed {}", to_string(dtype), vocab, seed()));
            constexpr size_t kBatch = 5;
            Values logits = rounded(dtype, random_normal(kBatch * vocab)), expected;
            for (size_t b = 0; b < kBatch; ++b) {
                const size_t first = generator()() % vocab, second = generator()() % vocab;
                logits[b * vocab + first] = logits[b * vocab + second] = 50;
                expected.push_back(static_cast<double>(std::min(first, second)));
            }
            const Buffer buffer(dtype, logits), ids = Buffer::poisoned(DType::i32, kBatch),
                                                position(DType::i32, {41, 0});  // as one i64
            decode_advance(stream(), {.batch = kBatch,
                                      .vocab = static_cast<int64_t>(vocab),
                                      .dtype = dtype,
                                      .logits = buffer.data(),
                                      .ids = ids.as<int32_t>(),
                                      .position = position.as<int64_t>()});
            EXPECT_EQ(ids.read(), expected);
            EXPECT_EQ(position.read(), (Values{42, 0}));
        }
}

}  // namespace
}  // namespace levin::kernels::test
