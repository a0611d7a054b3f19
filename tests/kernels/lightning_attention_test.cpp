#include "kernels/lightning_attention.h"

#include <omp.h>

#include <algorithm>
#include <memory>
#include <tuple>

#include "tests/kernels/kernel_test.h"
#include "tests/kernels/lightning_reference.h"

namespace levin::kernels::test {
namespace {

using Values = std::vector<double>;

const std::vector<DType> kTypes = {DType::f64, DType::f32, DType::bf16};

// Slopes of an 8-head model of 24 layers: head j, layer i.
double slope(int head, int layer) {
    return static_cast<float>(std::exp2(-(head + 1)) * (1 - layer / 23.0 + 1e-5));
}
const Values kFirstLayer = {slope(0, 0), slope(3, 0), slope(7, 0)},
             kMiddleLayer = {slope(0, 12), slope(3, 12), slope(7, 12)},
             kLastLayer = {slope(0, 23), slope(3, 23), slope(7, 23)}, kPaper = {0, 1, 8};

LightningInputs random_inputs(const Lightning& p, DType dtype, bool with_states) {
    LightningInputs in;
    in.q = rounded(dtype, random_normal(p.q_count()));
    in.k = rounded(dtype, random_normal(p.q_count()));
    in.v = rounded(dtype, random_normal(p.v_count()));
    in.d_o = rounded(dtype, random_normal(p.v_count()));
    if (with_states) {
        in.initial_state = rounded(accumulator_of(dtype), random_normal(p.state_count()));
        in.d_final_state = rounded(accumulator_of(dtype), random_normal(p.state_count()));
    }
    return in;
}

Values random_theta(const Lightning& p) {
    Values theta = random_normal(p.heads * p.key_dim, 0.5);
    theta[0] = 1;
    return rounded(DType::f32, theta);
}

// q, k and v as columns of one projection with unused columns around them, which must stay as they are.
struct Projection {
    int64_t heads, key_dim, value_dim, tokens;
    int64_t q_column() const { return 1; }
    int64_t k_column() const { return q_column() + heads * key_dim + 3; }
    int64_t v_column() const { return k_column() + heads * key_dim; }
    int64_t stride() const { return v_column() + heads * value_dim + 2; }
    void put(Values& all, const Values& part, int64_t column, int64_t width) const {
        for (int64_t t = 0; t < tokens; ++t)
            std::copy_n(part.begin() + t * width, width, all.begin() + t * stride() + column);
    }
    Values get(const Values& all, int64_t column, int64_t width) const {
        Values part;
        for (int64_t t = 0; t < tokens; ++t) {
            const auto row = all.begin() + t * stride() + column;
            part.insert(part.end(), row, row + width);
        }
        return part;
    }
};

// Of lightning_state, and mirrored.
struct States {
    Values leaves, enters;
};

// Runs the forward and the backward kernel. `beta` and `dtheta_before` are for accumulation. With `states`
// these are made first, and d_final_state comes only when it is asked for.
LightningOutputs run(const Lightning& p, DType dtype, const LightningInputs& in, double beta = 0,
                     double dtheta_before = 0, States* states = nullptr) {
    const DType acc = accumulator_of(dtype);
    const Projection layout{p.heads, p.key_dim, p.value_dim, p.tokens()};
    const int64_t key_columns = p.heads * p.key_dim, value_columns = p.heads * p.value_dim;
    Values all(p.tokens() * layout.stride(), std::nan(""));
    layout.put(all, in.q, layout.q_column(), key_columns);
    layout.put(all, in.k, layout.k_column(), key_columns);
    layout.put(all, in.v, layout.v_column(), value_columns);
    const Buffer qkv(dtype, all), d_o(dtype, in.d_o), slopes(DType::f32, p.slopes), theta(acc, p.theta),
        borders(DType::i32, p.borders), initial(acc, in.initial_state), d_final(acc, in.d_final_state);
    const Buffer o = Buffer::poisoned(dtype, p.v_count()), final = Buffer::poisoned(acc, p.state_count()),
                 d_qkv = Buffer::poisoned(dtype, all.size()),
                 d_initial = Buffer::poisoned(acc, p.state_count()),
                 dtheta = beta == 0 ? Buffer::poisoned(acc, p.theta.size())
                                    : Buffer(acc, Values(p.theta.size(), dtheta_before));

    LightningShape shape{p.batch, p.length,        p.heads,        p.key_dim,         p.value_dim,
                         dtype,   p.qk_activation, p.v_activation, slopes.as<float>()};
    if (!p.theta.empty()) shape.theta = theta.data();
    shape.first_position = p.first_position;
    if (!p.borders.empty()) shape.cu_seqlens = borders.as<int32_t>(), shape.documents = p.sequences();
    const auto or_null = [](const Buffer& b) { return b.count() ? b.data() : nullptr; };
    const int64_t stride = layout.stride();
    const void *q = qkv.at(layout.q_column()), *k = qkv.at(layout.k_column()), *v = qkv.at(layout.v_column());
    const Buffer late = Buffer::poisoned(acc, in.d_final_state.size());
    int asked = 0;
    const auto state_of = [&](bool mirrored) {
        const Buffer state = Buffer::poisoned(acc, p.state_count());
        lightning_state(stream(), {shape, mirrored, mirrored ? q : k, stride, mirrored ? d_o.data() : v,
                                   mirrored ? value_columns : stride, state.data()});
        return state.read();
    };
    shape.states_first = states != nullptr;
    if (states) states->leaves = state_of(false);
    lightning_forward(stream(),
                      {shape, q, stride, k, stride, v, stride, o.data(), or_null(initial), final.data()});
    if (states) states->enters = state_of(true);
    LightningBackward backward{shape,
                               q,
                               stride,
                               k,
                               stride,
                               v,
                               stride,
                               d_o.data(),
                               or_null(initial),
                               or_null(d_final),
                               d_qkv.at(layout.q_column()),
                               stride,
                               d_qkv.at(layout.k_column()),
                               stride,
                               d_qkv.at(layout.v_column()),
                               stride,
                               or_null(dtheta),
                               beta,
                               d_initial.data()};
    if (states) {
        backward.d_final_state = or_null(late);
        backward.await_d_final = [&] {
            ++asked;
            copy_bytes(stream(), device(), late.data(), device(), d_final.data(),
                       d_final.count() * size_of(acc));
        };
    }
    lightning_backward(stream(), backward);
    EXPECT_EQ(asked, states ? 1 : 0);
    LightningOutputs out;
    out.o = o.read();
    out.final_state = final.read();
    Values d_all = d_qkv.read();
    out.dq = layout.get(d_all, layout.q_column(), key_columns);
    out.dk = layout.get(d_all, layout.k_column(), key_columns);
    out.dv = layout.get(d_all, layout.v_column(), value_columns);
    out.d_initial_state = d_initial.read();
    if (!p.theta.empty()) out.dtheta = dtheta.read();
    for (const auto& [column, width] : {std::pair{layout.q_column(), key_columns},
                                        {layout.k_column(), key_columns},
                                        {layout.v_column(), value_columns}})
        layout.put(d_all, Values(p.tokens() * width, std::nan("")), column, width);
    EXPECT_TRUE(std::all_of(d_all.begin(), d_all.end(), [](double x) { return std::isnan(x); }))
        << "wrote beside its columns";
    return out;
}

// Relative error, but what is below the range of float32 may be zero.
double error_of(Values got, Values expected) {
    for (Values* x : {&got, &expected})
        for (double& value : *x)
            if (std::abs(value) < 1e-35) value = 0;
    return relative_error(got, expected);
}
void expect_close(const LightningOutputs& got, const LightningOutputs& expected, DType dtype,
                  double slack = 1) {
    const double bound = slack * tolerance(dtype),
                 state_bound = dtype == DType::bf16 ? slack * tolerance(DType::f32) : bound;
    EXPECT_LT(error_of(got.o, expected.o), bound);
    EXPECT_LT(error_of(got.final_state, expected.final_state), state_bound);
    EXPECT_LT(error_of(got.dq, expected.dq), bound);
    EXPECT_LT(error_of(got.dk, expected.dk), bound);
    EXPECT_LT(error_of(got.dv, expected.dv), bound);
    EXPECT_LT(error_of(got.d_initial_state, expected.d_initial_state), state_bound);
    ASSERT_EQ(got.dtheta.size(), expected.dtheta.size());
    for (size_t i = 0; i < expected.dtheta.size(); ++i)
        EXPECT_NEAR(got.dtheta[i], expected.dtheta[i], state_bound * (1e-30 + expected.dtheta_terms[i]))
            << "dtheta " << i;
}
void check(const Lightning& p, DType dtype, bool with_states, double slack = 1) {
    SCOPED_TRACE("seed " + std::to_string(seed()) + " " + to_string(dtype) + " length " +
                 std::to_string(p.length) + " widths " + std::to_string(p.key_dim) + " " +
                 std::to_string(p.value_dim));
    const LightningInputs in = random_inputs(p, dtype, with_states);
    expect_close(run(p, dtype, in), lightning_reference(p, in), dtype, slack);
}
Lightning make(int64_t batch, int64_t length, int64_t key_dim, int64_t value_dim, Values slopes) {
    Lightning p;
    p.batch = batch, p.length = length, p.heads = static_cast<int64_t>(slopes.size());
    p.key_dim = key_dim, p.value_dim = value_dim;
    p.slopes = rounded(DType::f32, std::move(slopes));
    return p;
}

TEST(LightningReference, GradientsAreThoseOfItsForward) {
    Lightning p = make(1, 5, 3, 2, {0.3, 0});
    p.qk_activation = Activation::silu, p.v_activation = Activation::gelu;
    p.theta = {0.5, 1, 0.1, 0.2, 0.7, 0.3};
    p.first_position = 7;
    p.borders = {0, 2, 2, 5};
    LightningInputs in = random_inputs(p, DType::f64, true);
    const auto loss = [&] {
        const LightningOutputs out = lightning_reference(p, in);
        double sum = 0;
        for (size_t i = 0; i < out.o.size(); ++i) sum += out.o[i] * in.d_o[i];
        for (size_t i = 0; i < out.final_state.size(); ++i) sum += out.final_state[i] * in.d_final_state[i];
        return sum;
    };
    const auto differences = [&](Values& x) {
        Values gradient(x.size());
        for (size_t i = 0; i < x.size(); ++i) {
            const double saved = x[i], h = 1e-5;
            x[i] = saved + h;
            const double above = loss();
            x[i] = saved - h;
            gradient[i] = (above - loss()) / (2 * h);
            x[i] = saved;
        }
        return gradient;
    };
    const LightningOutputs out = lightning_reference(p, in);
    EXPECT_LT(relative_error(out.dq, differences(in.q)), 1e-7);
    EXPECT_LT(relative_error(out.dk, differences(in.k)), 1e-7);
    EXPECT_LT(relative_error(out.dv, differences(in.v)), 1e-7);
    EXPECT_LT(relative_error(out.d_initial_state, differences(in.initial_state)), 1e-7);
    EXPECT_LT(relative_error(out.dtheta, differences(p.theta)), 1e-7);
}

TEST(LightningAttention, LengthsAndSlopes) {
    for (const DType dtype : kTypes)
        for (const int64_t length : {1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 300})
            for (const Values& slopes : {kFirstLayer, kMiddleLayer, kLastLayer, kPaper})
                check(make(2, length, 16, 24, slopes), dtype, length % 2 == 1);
}

TEST(LightningAttention, Widths) {
    for (const DType dtype : kTypes)
        for (const auto& [key_dim, value_dim] : std::vector<std::pair<int64_t, int64_t>>{
                 {1, 1}, {5, 3}, {16, 48}, {64, 64}, {33, 128}, {128, 128}, {80, 17}}) {
            // Many sequences: of few numbers the sums may cancel, and what is left has large relative errors.
            check(make(64, 1, key_dim, value_dim, {0.1}), dtype, true);
            check(make(8, 100, key_dim, value_dim, {0.1}), dtype, true);
        }
}

TEST(LightningAttention, Activations) {
    for (const DType dtype : kTypes)
        for (int a = 0; a <= static_cast<int>(Activation::sine); ++a)
            for (const bool with_theta : {false, true}) {
                SCOPED_TRACE("activation " + std::to_string(a));
                Lightning p = make(1, 70, 12, 20, kFirstLayer);
                p.qk_activation = p.v_activation = static_cast<Activation>(a);
                if (with_theta) p.theta = random_theta(p);
                check(p, dtype, true, 2);
            }
}

TEST(LightningAttention, RotaryEncodingAtAnyPosition) {
    for (const DType dtype : kTypes)
        for (const int64_t position : {int64_t{0}, int64_t{1'000'000}, int64_t{1} << 40})
            for (const int64_t length : {1, 64, 200}) {
                SCOPED_TRACE("position " + std::to_string(position));
                Lightning p = make(2, length, 20, 16, {0.01, 1e-7});
                p.qk_activation = Activation::silu;
                p.theta = random_theta(p);
                p.first_position = position;
                check(p, dtype, true, 2);
                check(p, dtype, false, 2);
            }
}

TEST(LightningAttention, ThetaGradientIsAdded) {
    Lightning p = make(1, 40, 6, 8, kMiddleLayer);
    p.theta = random_theta(p);
    const LightningInputs in = random_inputs(p, DType::f64, true);
    const LightningOutputs expected = lightning_reference(p, in), got = run(p, DType::f64, in, 0.5, 3);
    for (size_t i = 0; i < expected.dtheta.size(); ++i)
        EXPECT_NEAR(got.dtheta[i], expected.dtheta[i] + 1.5, 1e-12 * (2 + expected.dtheta_terms[i]));
}

TEST(LightningAttention, PackedDocumentsAsSeparateOnes) {
    const int64_t length = 150;
    for (int border = 0; border <= 130; border += border < 66 ? 1 : 16) {
        SCOPED_TRACE("border " + std::to_string(border));
        const DType dtype = border % 3 == 0 ? DType::f64 : border % 3 == 1 ? DType::f32 : DType::bf16;
        Lightning p = make(1, length, 6, 5, {0.05, 0});
        if (border % 2) p.theta = random_theta(p);
        p.qk_activation = Activation::silu;
        p.first_position = 3;
        // Also an empty document, one of a single token, and an empty one at the end.
        p.borders = {0,  static_cast<double>(border), static_cast<double>(border), border + 1.0, 140, 150,
                     150};
        const LightningInputs in = random_inputs(p, dtype, true);
        const LightningOutputs packed = run(p, dtype, in);
        expect_close(packed, lightning_reference(p, in), dtype, 2);

        LightningOutputs joined;
        joined.dtheta.assign(p.theta.size(), 0);
        for (int64_t d = 0; d < p.sequences(); ++d) {
            const int64_t tokens = p.end(d) - p.begin(d), key_row = p.heads * p.key_dim,
                          value_row = p.heads * p.value_dim, state = p.heads * p.key_width() * p.value_dim;
            if (tokens == 0) {
                for (auto [to, from] : {std::pair{&joined.final_state, &in.initial_state},
                                        std::pair{&joined.d_initial_state, &in.d_final_state}})
                    to->insert(to->end(), from->begin() + d * state, from->begin() + (d + 1) * state);
                continue;
            }
            const auto slice = [](const Values& x, int64_t first, int64_t count) {
                return Values(x.begin() + first, x.begin() + first + count);
            };
            Lightning one = p;
            one.borders.clear();
            one.length = tokens;
            one.first_position = p.position(p.begin(d));
            const LightningOutputs out =
                run(one, dtype,
                    {slice(in.q, p.begin(d) * key_row, tokens * key_row),
                     slice(in.k, p.begin(d) * key_row, tokens * key_row),
                     slice(in.v, p.begin(d) * value_row, tokens * value_row),
                     slice(in.d_o, p.begin(d) * value_row, tokens * value_row),
                     slice(in.initial_state, d * state, state), slice(in.d_final_state, d * state, state)});
            const auto append = [](Values& to, const Values& from) {
                to.insert(to.end(), from.begin(), from.end());
            };
            append(joined.o, out.o), append(joined.final_state, out.final_state), append(joined.dq, out.dq);
            append(joined.dk, out.dk), append(joined.dv, out.dv),
                append(joined.d_initial_state, out.d_initial_state);
            for (size_t i = 0; i < out.dtheta.size(); ++i) joined.dtheta[i] += out.dtheta[i];
        }
        joined.dtheta_terms = lightning_reference(p, in).dtheta_terms;
        expect_close(packed, joined, dtype);
    }
}

TEST(LightningAttention, DocumentsWithoutStates) {
    Lightning p = make(1, 90, 8, 8, kFirstLayer);
    p.borders = {0, 0, 1, 1, 70, 90, 90};
    for (const DType dtype : kTypes) check(p, dtype, false);
}

// What enters leaves, forward and backward, and theta's gradient is what it was.
TEST(LightningAttention, NoTokensAtAll) {
    for (const DType dtype : kTypes)
        for (const bool with_states : {false, true})
            for (const bool packed : {false, true}) {
                Lightning p = make(packed ? 1 : 2, 0, 64, 64, kFirstLayer);
                p.theta = random_theta(p);
                if (packed) p.borders = {0, 0, 0, 0};
                const LightningInputs in = random_inputs(p, dtype, with_states);
                const Values zero(static_cast<size_t>(p.state_count()), 0);
                States states;
                for (States* first : {static_cast<States*>(nullptr), &states}) {
                    const LightningOutputs out = run(p, dtype, in, 0.5, 3, first);
                    EXPECT_EQ(out.final_state, with_states ? in.initial_state : zero);
                    EXPECT_EQ(out.d_initial_state, with_states ? in.d_final_state : zero);
                    EXPECT_EQ(out.dtheta, Values(p.theta.size(), 1.5));
                }
                EXPECT_EQ(states.leaves, zero);
                EXPECT_EQ(states.enters, zero);
                EXPECT_EQ(run(p, dtype, in).dtheta, Values(p.theta.size(), 0));
            }
}

// A sequence in two calls, the state and its gradient handed over, is the sequence in one.
TEST(LightningAttention, StateHandedOver) {
    for (const int64_t cut : {1, 30, 64, 99}) {
        Lightning p = make(1, 100, 10, 12, kLastLayer);
        p.theta = random_theta(p);
        const LightningInputs in = random_inputs(p, DType::f64, true);
        const LightningOutputs whole = lightning_reference(p, in);
        const int64_t key_row = p.heads * p.key_dim, value_row = p.heads * p.value_dim;
        Lightning head = p, tail = p;
        head.length = cut, tail.length = p.length - cut, tail.first_position = cut;
        const auto part = [&](const Lightning& half, int64_t first) {
            LightningInputs x = in;
            for (auto* v : {&x.q, &x.k})
                *v = Values(v->begin() + first * key_row, v->begin() + (first + half.length) * key_row);
            for (auto* v : {&x.v, &x.d_o})
                *v = Values(v->begin() + first * value_row, v->begin() + (first + half.length) * value_row);
            return x;
        };
        LightningInputs first = part(head, 0), second = part(tail, cut);
        second.initial_state = run(head, DType::f64, first).final_state;
        const LightningOutputs after = run(tail, DType::f64, second);
        first.d_final_state = after.d_initial_state;
        const LightningOutputs before = run(head, DType::f64, first);
        const auto join = [](Values a, const Values& b) {
            a.insert(a.end(), b.begin(), b.end());
            return a;
        };
        EXPECT_LT(relative_error(join(before.o, after.o), whole.o), 1e-12);
        EXPECT_LT(relative_error(after.final_state, whole.final_state), 1e-12);
        EXPECT_LT(relative_error(join(before.dq, after.dq), whole.dq), 1e-12);
        EXPECT_LT(relative_error(join(before.dk, after.dk), whole.dk), 1e-12);
        EXPECT_LT(relative_error(join(before.dv, after.dv), whole.dv), 1e-12);
        EXPECT_LT(relative_error(before.d_initial_state, whole.d_initial_state), 1e-12);
        for (size_t i = 0; i < whole.dtheta.size(); ++i)
            EXPECT_NEAR(before.dtheta[i] + after.dtheta[i], whole.dtheta[i], 1e-12 * whole.dtheta_terms[i]);
    }
}

// What a sequence adds to the state, made before the outputs: that of the outputs' own walk, and they are the
// same.
TEST(LightningAttention, StatesFirst) {
    for (const DType dtype : kTypes)
        for (const int64_t length : {1, 64, 150})
            for (const bool packed : {false, true}) {
                SCOPED_TRACE("length " + std::to_string(length) + " packed " + std::to_string(packed));
                Lightning p = make(packed ? 1 : 2, length, 10, 12, kFirstLayer);
                p.theta = random_theta(p);
                p.qk_activation = Activation::silu, p.v_activation = Activation::gelu;
                p.first_position = 7;
                if (packed) p.borders = {0, 0, std::floor(length / 3.0), static_cast<double>(length)};
                LightningInputs in = random_inputs(p, dtype, true);
                States states;
                const LightningOutputs whole = run(p, dtype, in), got = run(p, dtype, in, 0, 0, &states);
                EXPECT_EQ(got.o, whole.o);
                EXPECT_EQ(got.final_state, whole.final_state);
                EXPECT_EQ(got.dq, whole.dq);
                EXPECT_EQ(got.dk, whole.dk);
                EXPECT_EQ(got.dv, whole.dv);
                EXPECT_EQ(got.dtheta, whole.dtheta);
                EXPECT_EQ(got.d_initial_state, whole.d_initial_state);
                in.initial_state.clear(), in.d_final_state.clear();
                const LightningOutputs alone = lightning_reference(p, in);
                EXPECT_LT(error_of(states.leaves, alone.final_state), tolerance(dtype));
                EXPECT_LT(error_of(states.enters, alone.d_initial_state), tolerance(dtype));
            }
}

// Decoding: one token a call, the state updated in place.
TEST(LightningAttention, TokenByToken) {
    for (const DType dtype : {DType::f64, DType::f32}) {
        Lightning p = make(1, 70, 24, 40, kFirstLayer);
        p.theta = random_theta(p);
        p.qk_activation = Activation::silu;
        const LightningInputs in = random_inputs(p, dtype, false);
        const LightningOutputs whole = lightning_reference(p, in);
        const Buffer q(dtype, in.q), k(dtype, in.k), v(dtype, in.v), slopes(DType::f32, p.slopes),
            theta(accumulator_of(dtype), p.theta), o = Buffer::poisoned(dtype, p.v_count()),
                                                   state(accumulator_of(dtype), Values(p.state_count(), 0));
        const int64_t key_row = p.heads * p.key_dim, value_row = p.heads * p.value_dim;
        for (int64_t t = 0; t < p.length; ++t) {
            const LightningShape shape{1,
                                       1,
                                       p.heads,
                                       p.key_dim,
                                       p.value_dim,
                                       dtype,
                                       p.qk_activation,
                                       p.v_activation,
                                       slopes.as<float>(),
                                       theta.data(),
                                       t};
            lightning_forward(
                stream(), {shape, q.at(t * key_row), key_row, k.at(t * key_row), key_row, v.at(t * value_row),
                           value_row, o.at(t * value_row), state.data(), state.data()});
        }
        EXPECT_LT(relative_error(o.read(), whole.o), tolerance(dtype));
        EXPECT_LT(relative_error(state.read(), whole.final_state), tolerance(dtype));
    }
}

// Outputs that nobody wants may be missing, and the others stay the same to the bit.
TEST(LightningAttention, OptionalOutputs) {
    for (const int64_t length : {1, 100}) {
        const Lightning p = make(2, length, 8, 12, kFirstLayer);
        const LightningInputs in = random_inputs(p, DType::f32, false);
        const LightningOutputs all = run(p, DType::f32, in);
        const Buffer q(DType::f32, in.q), k(DType::f32, in.k), v(DType::f32, in.v), d_o(DType::f32, in.d_o),
            slopes(DType::f32, p.slopes),
            o = Buffer::poisoned(DType::f32, p.v_count()), dq = Buffer::poisoned(DType::f32, p.q_count()),
            dk = Buffer::poisoned(DType::f32, p.q_count()), dv = Buffer::poisoned(DType::f32, p.v_count());
        const int64_t key_row = p.heads * p.key_dim, value_row = p.heads * p.value_dim;
        const LightningShape shape{p.batch,          length,           p.heads,
                                   p.key_dim,        p.value_dim,      DType::f32,
                                   Activation::none, Activation::none, slopes.as<float>()};
        lightning_forward(stream(), {shape, q.data(), key_row, k.data(), key_row, v.data(), value_row,
                                     o.data(), nullptr, nullptr});
        lightning_backward(stream(), {shape, q.data(), key_row, k.data(), key_row, v.data(), value_row,
                                      d_o.data(), nullptr, nullptr, dq.data(), key_row, dk.data(), key_row,
                                      dv.data(), value_row, nullptr, 0, nullptr});
        EXPECT_EQ(o.read(), all.o);
        EXPECT_EQ(dq.read(), all.dq);
        EXPECT_EQ(dk.read(), all.dk);
        EXPECT_EQ(dv.read(), all.dv);
    }
}

// The same bits from run to run and, on the CPU, whatever the number of threads: work may be cut by heads, by
// columns of the values and by columns of the queries.
TEST(LightningAttention, SameBits) {
    const int threads = omp_get_max_threads();
    for (const DType dtype : kTypes)
        for (const bool packed : {false, true})
            for (const int64_t heads : {1, 3}) {
                Lightning p =
                    make(1, 200, 48, 64, Values(kMiddleLayer.begin(), kMiddleLayer.begin() + heads));
                p.theta = random_theta(p);
                p.qk_activation = p.v_activation = Activation::exp;
                if (packed) p.borders = {0, 1, 80, 200};
                const LightningInputs in = random_inputs(p, dtype, true);
                omp_set_num_threads(1);
                const LightningOutputs first = run(p, dtype, in);
                for (const int now : {1, 2, 3, 5, 8}) {
                    omp_set_num_threads(now);
                    const LightningOutputs again = run(p, dtype, in);
                    EXPECT_EQ(again.o, first.o) << now << " threads";
                    EXPECT_EQ(again.final_state, first.final_state);
                    EXPECT_EQ(again.dq, first.dq) << now << " threads";
                    EXPECT_EQ(again.dk, first.dk);
                    EXPECT_EQ(again.dv, first.dv);
                    EXPECT_EQ(again.d_initial_state, first.d_initial_state);
                    EXPECT_EQ(again.dtheta, first.dtheta);
                }
            }
    omp_set_num_threads(threads);
}

// Positive inputs and hardly any decay: a sum that loses a little at each of many steps would drift.
TEST(LightningAttention, LongSumKeepsItsPrecision) {
    const int64_t length = 1 << 17;
    Lightning p = make(1, length, 4, 4, {4e-8});
    LightningInputs in;
    in.q = in.k = in.v = in.d_o = Values(length * 4, rounded(DType::f32, {0.3})[0]);
    const LightningOutputs got = run(p, DType::f32, in), expected = lightning_reference(p, in);
    const auto worst = [](const Values& a, const Values& b) {
        double error = 0;
        for (size_t i = 0; i < a.size(); ++i) error = std::max(error, std::abs(a[i] - b[i]) / std::abs(b[i]));
        return error;
    };
    // A GPU may round lambda^C to float32, which 2^11 steps magnify.
    const double bound = device().is_cpu() ? 5e-6 : 1e-4;
    EXPECT_LT(worst(got.o, expected.o), bound);
    EXPECT_LT(worst(got.final_state, expected.final_state), bound);
    EXPECT_LT(worst(got.dq, expected.dq), bound);
    EXPECT_LT(worst(got.dk, expected.dk), bound);
    EXPECT_LT(worst(got.dv, expected.dv), bound);
}

// The same for a state that is handed from call to call: 1 - 4e-8 is no float32 number.
TEST(LightningAttention, DecodingKeepsItsPrecision) {
    const int64_t steps = 20000;
    const double slope = rounded(DType::f32, {4e-8})[0];
    Values values = random_normal(steps);
    for (double& v : values) v = std::abs(v);
    values = rounded(DType::f32, values);
    const Buffer one(DType::f32, {1}), v(DType::f32, values), slopes(DType::f32, {slope}),
        o = Buffer::poisoned(DType::f32, 1), state(DType::f32, {0});
    const LightningShape shape{
        1, 1, 1, 1, 1, DType::f32, Activation::none, Activation::none, slopes.as<float>()};
    double expected = 0;
    for (int64_t t = 0; t < steps; ++t) {
        lightning_forward(stream(), {shape, one.data(), 1, one.data(), 1, v.at(t), 1, o.data(), state.data(),
                                     state.data()});
        expected = std::exp(-slope) * expected + values[t];
    }
    EXPECT_NEAR(state.read()[0] / expected, 1, device().is_cpu() ? 1e-5 : 1e-3);
}

// Numbers far apart in size: what decays beyond the range of float32 is zero, nothing becomes NaN.
TEST(LightningAttention, SteepDecayStaysFinite) {
    for (const double steep : {0.7, 1.5, 2.0, 8.0, 100.0}) {
        Lightning p = make(1, 200, 16, 16, {steep});
        check(p, DType::f32, true);
    }
}

TEST(LightningAttention, RefusesWrongDocuments) {
    if (!device().is_cpu()) return;  // a GPU's borders are not read by the host
    const Buffer x(DType::f32, Values(80, 0)), slopes(DType::f32, {0}), o = Buffer::poisoned(DType::f32, 40);
    for (const Values& wrong : {Values{0, 4, 9}, Values{1, 4, 10}, Values{0, 11, 10}}) {
        const Buffer borders(DType::i32, wrong);
        LightningShape shape{
            1, 10, 1, 4, 4, DType::f32, Activation::none, Activation::none, slopes.as<float>()};
        shape.cu_seqlens = borders.as<int32_t>(), shape.documents = 2;
        EXPECT_THROW(lightning_forward(stream(), {shape, x.data(), 4, x.data(), 4, x.data(), 4, o.data(),
                                                  nullptr, nullptr}),
                     Error);
    }
}

}  // namespace
}  // namespace levin::kernels::test
