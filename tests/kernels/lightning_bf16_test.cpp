// Lightning attention as a training step calls it: bf16, aligned columns of one projection, head widths of
// real models, sequences long enough to be cut into segments. On a GPU this is the tensor-core kernel.
#include "kernels/lightning_attention.h"
#include "tests/kernels/kernel_test.h"
#include "tests/kernels/lightning_reference.h"

namespace levin::kernels::test {
namespace {

using Values = std::vector<double>;
constexpr DType kType = DType::bf16;
// bf16 operands inside the kernel and a bf16 result: each some 2^-9 of the value.
constexpr double kBound = 6e-3;

// Slopes of an 8-head model of 24 layers: head j, layer i.
double slope(int head, int layer) {
    return static_cast<float>(std::exp2(-(head + 1)) * (1 - layer / 23.0 + 1e-5));
}

LightningInputs random_inputs(const Lightning& p, bool with_states) {
    LightningInputs in;
    in.q = rounded(kType, random_normal(p.q_count()));
    in.k = rounded(kType, random_normal(p.q_count()));
    in.v = rounded(kType, random_normal(p.v_count()));
    in.d_o = rounded(kType, random_normal(p.v_count()));
    if (with_states) {
        in.initial_state = rounded(DType::f32, random_normal(p.state_count(), 8));
        in.d_final_state = rounded(DType::f32, random_normal(p.state_count(), 8));
    }
    return in;
}

// Of lightning_state, and mirrored.
struct States {
    Values leaves, enters;
};

// keep: forward leaves backward what it asks for. With `states` these are made first, and d_final_state comes
// only when it is asked for.
LightningOutputs run(const Lightning& p, const LightningInputs& in, bool keep = true,
                     States* states = nullptr) {
    const int64_t key_columns = p.heads * p.key_dim, value_columns = p.heads * p.value_dim;
    const int64_t stride = 2 * key_columns + value_columns;
    const auto spread = [&](const Values& part, int64_t column, int64_t width, Values& all) {
        for (int64_t t = 0; t < p.tokens(); ++t)
            std::copy_n(part.begin() + t * width, width, all.begin() + t * stride + column);
    };
    const auto gather = [&](const Values& all, int64_t column, int64_t width) {
        Values part;
        for (int64_t t = 0; t < p.tokens(); ++t)
            part.insert(part.end(), all.begin() + t * stride + column,
                        all.begin() + t * stride + column + width);
        return part;
    };
    Values all(p.tokens() * stride);
    spread(in.q, 0, key_columns, all);
    spread(in.k, key_columns, key_columns, all);
    spread(in.v, 2 * key_columns, value_columns, all);
    const Buffer qkv(kType, all), d_o(kType, in.d_o), slopes(DType::f32, p.slopes),
        borders(DType::i32, p.borders), theta(DType::f32, p.theta), initial(DType::f32, in.initial_state),
        d_final(DType::f32, in.d_final_state);
    const Buffer o = Buffer::poisoned(kType, p.v_count()), d_qkv = Buffer::poisoned(kType, all.size()),
                 final = Buffer::poisoned(DType::f32, p.state_count()),
                 d_initial = Buffer::poisoned(DType::f32, p.state_count()),
                 dtheta = Buffer::poisoned(DType::f32, p.theta.size());
    LightningShape shape{p.batch, p.length,        p.heads,        p.key_dim,         p.value_dim,
                         kType,   p.qk_activation, p.v_activation, slopes.as<float>()};
    shape.steepest = static_cast<float>(*std::max_element(p.slopes.begin(), p.slopes.end()));
    if (!p.theta.empty()) shape.theta = theta.data(), shape.first_position = p.first_position;
    if (!p.borders.empty()) shape.cu_seqlens = borders.as<int32_t>(), shape.documents = p.sequences();
    shape.states_first = states != nullptr;
    const auto or_null = [](const Buffer& b) { return b.count() ? b.data() : nullptr; };
    const void *q = qkv.data(), *k = qkv.at(key_columns), *v = qkv.at(2 * key_columns);
    LightningForward forward{shape,  q,        stride,           k,           stride, v,
                             stride, o.data(), or_null(initial), final.data()};
    const int64_t kept_count = keep ? lightning_states_to_keep(stream(), forward) : 0;
    const Buffer kept = Buffer::poisoned(DType::f32, kept_count),
                 kept_gradients = Buffer::poisoned(DType::f32, states ? kept_count : 0),
                 late = Buffer::poisoned(DType::f32, in.d_final_state.size());
    if (kept_count > 0) forward.kept_states = kept.as<float>();
    const auto state_of = [&](bool mirrored, float* inside) {
        const Buffer state = Buffer::poisoned(DType::f32, p.state_count());
        lightning_state(stream(), {shape, mirrored, mirrored ? q : k, stride, mirrored ? d_o.data() : v,
                                   mirrored ? value_columns : stride, state.data(), inside});
        return state.read();
    };
    if (states) states->leaves = state_of(false, forward.kept_states);
    lightning_forward(stream(), forward);
    float* gradients = kept_gradients.count() ? kept_gradients.as<float>() : nullptr;
    if (states) states->enters = state_of(true, gradients);
    std::function<void()> await;
    if (states)
        await = [&] {
            copy_bytes(stream(), device(), late.data(), device(), d_final.data(),
                       d_final.count() * sizeof(float));
        };
    lightning_backward(stream(), {shape,
                                  q,
                                  stride,
                                  k,
                                  stride,
                                  v,
                                  stride,
                                  d_o.data(),
                                  or_null(initial),
                                  or_null(states ? late : d_final),
                                  d_qkv.data(),
                                  stride,
                                  d_qkv.at(key_columns),
                                  stride,
                                  d_qkv.at(2 * key_columns),
                                  stride,
                                  p.theta.empty() ? nullptr : dtheta.data(),
                                  0,
                                  d_initial.data(),
                                  forward.kept_states,
                                  gradients,
                                  await});
    LightningOutputs out;
    out.o = o.read(), out.final_state = final.read(), out.d_initial_state = d_initial.read();
    if (!p.theta.empty()) out.dtheta = dtheta.read();
    const Values d_all = d_qkv.read();
    out.dq = gather(d_all, 0, key_columns);
    out.dk = gather(d_all, key_columns, key_columns);
    out.dv = gather(d_all, 2 * key_columns, value_columns);
    return out;
}

void check(const Lightning& p, bool with_states) {
    SCOPED_TRACE("seed " + std::to_string(seed()) + " length " + std::to_string(p.length) + " widths " +
                 std::to_string(p.key_dim) + " " + std::to_string(p.value_dim) + " states " +
                 std::to_string(with_states));
    const LightningInputs in = random_inputs(p, with_states);
    const LightningOutputs got = run(p, in), again = run(p, in, false), expected = lightning_reference(p, in);
    // With few tokens one product of q and k is all there is, and its terms may nearly cancel.
    const double bound = p.length < 8 ? 4 * kBound : kBound;
    EXPECT_EQ(got.dq, again.dq);
    EXPECT_EQ(got.dk, again.dk);
    EXPECT_EQ(got.dv, again.dv);
    States states;
    const LightningOutputs after_states = run(p, in, true, &states);
    for (const LightningOutputs* each : {&got, &after_states}) {
        const LightningOutputs& one = *each;
        SCOPED_TRACE(each == &got ? "alone" : "states first");
        EXPECT_LT(relative_error(one.o, expected.o), bound);
        EXPECT_LT(relative_error(one.final_state, expected.final_state), bound);
        EXPECT_LT(relative_error(one.dq, expected.dq), bound);
        EXPECT_LT(relative_error(one.dk, expected.dk), bound);
        EXPECT_LT(relative_error(one.dv, expected.dv), bound);
        EXPECT_LT(relative_error(one.d_initial_state, expected.d_initial_state), bound);
        ASSERT_EQ(one.dtheta.size(), expected.dtheta.size());
        for (size_t i = 0; i < one.dtheta.size(); ++i)
            EXPECT_NEAR(one.dtheta[i], expected.dtheta[i], kBound * expected.dtheta_terms[i])
                << "theta " << i;
    }
    const LightningOutputs alone = lightning_reference(p, {in.q, in.k, in.v, in.d_o, {}, {}});
    EXPECT_LT(relative_error(states.leaves, alone.final_state), bound);
    EXPECT_LT(relative_error(states.enters, alone.d_initial_state), bound);
}
Lightning make(int64_t batch, int64_t length, int64_t key_dim, int64_t value_dim, Values slopes) {
    Lightning p;
    p.batch = batch, p.length = length, p.heads = static_cast<int64_t>(slopes.size());
    p.key_dim = key_dim, p.value_dim = value_dim;
    p.slopes = rounded(DType::f32, std::move(slopes));
    return p;
}

TEST(LightningBf16, Lengths) {
    for (const int64_t length : {1, 2, 63, 64, 65, 127, 128, 129, 300})
        for (const bool states : {false, true}) {
            check(make(2, length, 64, 64, {slope(0, 0), slope(4, 12), slope(7, 23), 0, 8}), states);
            check(make(1, length, 128, 128, {slope(0, 12), slope(7, 23)}), states);
        }
}

TEST(LightningBf16, Widths) {
    for (const auto& [key_dim, value_dim] : std::vector<std::pair<int64_t, int64_t>>{
             {32, 32}, {40, 56}, {96, 96}, {64, 128}, {128, 64}, {72, 120}})
        check(make(1, 200, key_dim, value_dim, {slope(1, 0), slope(6, 12)}), true);
}

TEST(LightningBf16, Activations) {
    for (const Activation activation : {Activation::silu, Activation::relu}) {
        Lightning p = make(2, 150, 64, 64, {slope(2, 0), slope(5, 12)});
        p.qk_activation = activation;
        check(p, false);
        p.v_activation = activation;
        check(p, true);
        p = make(1, 130, 128, 128, {slope(5, 12)});
        p.qk_activation = p.v_activation = activation;
        check(p, true);
    }
}

// With LRPE the keys are twice as wide.
TEST(LightningBf16, RotaryEncoding) {
    for (const int64_t key_dim : {40, 64, 128})
        for (const int64_t length : {100, 2048}) {
            Lightning p = make(1, length, key_dim, key_dim, {slope(1, 0), slope(7, 12)});
            if (length > 1000) p = make(1, length, key_dim, key_dim, {slope(6, 0)});
            p.theta = rounded(DType::f32, random_normal(p.heads * key_dim, 0.5));
            p.qk_activation = Activation::silu;
            p.first_position = 1000;
            check(p, length < 1000);
        }
    Lightning p = make(1, 200, 64, 32, {slope(3, 0), slope(7, 12)});
    p.theta = rounded(DType::f32, random_normal(p.heads * 64, 0.5));
    p.qk_activation = Activation::one_plus_elu;
    p.borders = {0, 70, 200};
    check(p, true);
}

TEST(LightningBf16, LongSequences) {
    for (const int64_t length : {2048, 3000}) {
        check(make(1, length, 64, 64, {slope(0, 0), slope(6, 12), slope(7, 23)}), length == 3000);
        check(make(1, length, 128, 128, {slope(7, 12)}), length == 3000);
    }
    // So many segments that the states at their starts are summed once for all.
    check(make(1, 6000, 64, 64, {slope(6, 12)}), true);
    // States narrower than the kernel holds them, summed by blocks and once for all.
    check(make(1, 2100, 72, 120, {slope(6, 12), slope(7, 0)}), true);
    check(make(1, 6000, 120, 40, {slope(6, 12)}), true);
    // No decay at all, and one that forgets all but the last tokens of a segment.
    Lightning p = make(1, 3000, 64, 64, {0, 1.1, slope(0, 0), slope(7, 23)});
    p.qk_activation = Activation::silu;
    check(p, true);
}

// The state that a segment starts from holds what came long before it, as far as f32 can tell: the product of
// k and v, or q and d_o, is 2^20 times larger up to 14 / slope tokens before the border than behind it.
TEST(LightningBf16, LargeTokensFarFromABorder) {
    constexpr int64_t kLength = 2048, kSegment = 512, kLarge = kSegment - 70, kNear = 64, kWidth = 64;
    const Lightning p = make(1, kLength, kWidth, kWidth, {0.2});
    const auto rows = [&](const Values& all, int64_t from) {
        return Values(all.begin() + from * kWidth, all.begin() + (from + kNear) * kWidth);
    };
    for (const bool mirrored : {false, true}) {
        SCOPED_TRACE("seed " + std::to_string(seed()) + " mirrored " + std::to_string(mirrored));
        LightningInputs in = random_inputs(p, false);
        const int64_t first = mirrored ? kLength - kLarge : 0;
        for (Values* values : {mirrored ? &in.q : &in.k, mirrored ? &in.d_o : &in.v})
            for (int64_t i = first * kWidth; i < (first + kLarge) * kWidth; ++i) (*values)[i] *= 1024;
        const LightningOutputs got = run(p, in), expected = lightning_reference(p, in);
        const int64_t near = mirrored ? kLength - kSegment - kNear : kSegment;
        const Values &a = mirrored ? got.dk : got.o, &b = mirrored ? expected.dk : expected.o;
        const Values &c = mirrored ? got.dv : got.dq, &d = mirrored ? expected.dv : expected.dq;
        EXPECT_LT(relative_error(rows(a, near), rows(b, near)), kBound);
        EXPECT_LT(relative_error(rows(c, near), rows(d, near)), kBound);
    }
}

TEST(LightningBf16, PackedDocuments) {
    for (const double border : {1, 63, 64, 65, 130}) {
        Lightning p = make(1, 260, 64, 64, {slope(3, 0), slope(7, 12)});
        p.qk_activation = Activation::silu;
        p.borders = {0, border, border, 200, 260};
        check(p, true);
        check(p, false);
    }
}

TEST(LightningBf16, SameBitsEveryTime) {
    const Lightning p = make(2, 2000, 64, 64, {slope(0, 0), slope(7, 23)});
    const LightningInputs in = random_inputs(p, true);
    const LightningOutputs first = run(p, in);
    for (int i = 0; i < 5; ++i) {
        const LightningOutputs again = run(p, in);
        EXPECT_EQ(again.o, first.o);
        EXPECT_EQ(again.final_state, first.final_state);
        EXPECT_EQ(again.dq, first.dq);
        EXPECT_EQ(again.dk, first.dk);
        EXPECT_EQ(again.dv, first.dv);
        EXPECT_EQ(again.d_initial_state, first.d_initial_state);
    }
}

}  // namespace
}  // namespace levin::kernels::test
