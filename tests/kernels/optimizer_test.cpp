#include "kernels/optimizer.h"

#include <bit>

#include "tests/kernels/kernel_test.h"

namespace levin::kernels::test {
namespace {

using Values = std::vector<double>;

constexpr double kRate = 3e-3, kBeta1 = 0.9, kBeta2 = 0.95, kEps = 1e-8;

struct Parameter {
    Values w, m, v;
    double weight_decay;

    void step(const Values& grad, int64_t step, double scale) {
        for (size_t i = 0; i < w.size(); ++i) {
            const double g = grad[i] * scale;
            m[i] = kBeta1 * m[i] + (1 - kBeta1) * g;
            v[i] = kBeta2 * v[i] + (1 - kBeta2) * g * g;
            const double m_hat = m[i] / (1 - std::pow(kBeta1, static_cast<double>(step)));
            const double v_hat = v[i] / (1 - std::pow(kBeta2, static_cast<double>(step)));
            w[i] -= kRate * (m_hat / (std::sqrt(v_hat) + kEps) + weight_decay * w[i]);
        }
    }
};

// Largest error of an element, relative to it or, where a moment nearly cancels, to the size of the
// gradients.
double worst(const Values& a, const Values& b, double size) {
    double result = a.size() == b.size() ? 0 : INFINITY;
    for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
        const double error = std::abs(a[i] - b[i]) / (std::abs(b[i]) + size);
        if (!(error <= result)) result = error;  // NaN too
    }
    return result;
}

// Many tensors of different sizes in one call, over several steps, with and without a clip factor and a bf16
// copy.
void check(DType acc, bool with_scale) {
    SCOPED_TRACE(fmt::format("{} scale {} seed {}", to_string(acc), with_scale, seed()));
    const std::vector<size_t> sizes{1, 40, 0, 40000, 777};
    const double scale = with_scale ? 0.625 : 1;
    std::vector<Parameter> expected;
    std::vector<Buffer> w, m, v, model;
    for (size_t t = 0; t < sizes.size(); ++t) {
        const Values start = rounded(acc, random_normal(sizes[t]));
        expected.push_back({start, Values(sizes[t], 0.0), Values(sizes[t], 0.0), t % 2 == 0 ? 0.1 : 0.0});
        w.emplace_back(acc, start);
        m.emplace_back(acc, expected[t].m);
        v.emplace_back(acc, expected[t].v);
        model.push_back(Buffer::poisoned(DType::bf16, sizes[t]));
    }
    const Buffer scale_buffer(acc, {scale});
    for (int64_t step = 1; step <= 5; ++step) {
        std::vector<Buffer> grads;
        std::vector<AdamWTensor> list;
        for (size_t t = 0; t < sizes.size(); ++t) {
            const Values grad = rounded(acc, random_normal(sizes[t], 0.01));
            expected[t].step(grad, step, scale);
            grads.emplace_back(acc, grad);
            list.push_back({static_cast<int64_t>(sizes[t]), w[t].data(), t == 1 ? nullptr : model[t].data(),
                            grads[t].data(), m[t].data(), v[t].data(), expected[t].weight_decay});
        }
        adamw(stream(), {static_cast<int64_t>(list.size()), list.data(), acc, kRate, kBeta1, kBeta2, kEps,
                         step, with_scale ? scale_buffer.data() : nullptr});
        synchronize(stream());
    }
    for (size_t t = 0; t < sizes.size(); ++t) {
        SCOPED_TRACE(fmt::format("tensor {}", t));
        EXPECT_LT(worst(w[t].read(), expected[t].w, kRate), tolerance(acc));
        EXPECT_LT(worst(m[t].read(), expected[t].m, 1e-2), tolerance(acc));
        EXPECT_LT(worst(v[t].read(), expected[t].v, 0), tolerance(acc));
        if (t != 1) {
            EXPECT_EQ(model[t].read(), rounded(DType::bf16, w[t].read()));
        }
    }
}

TEST(AdamW, MatchesTheFormula) {
    for (const DType acc : {DType::f64, DType::f32})
        for (const bool with_scale : {false, true}) check(acc, with_scale);
}

// Every kind of float32 goes through bf16 + 16 bits and comes back; the bf16 is the nearest, ties away from
// zero.
TEST(SplitMaster, IsExact) {
    std::vector<uint32_t> bits{0,           0x80000000u, 0x7f800000u, 0xff800000u, 0x7f7fffffu, 1,
                               0x807fffffu, 0x3f808000u, 0x3f818000u, 0x3f807fffu, 0x3f808001u, 0xbf808000u,
                               0x7fc00000u, 0x7fffffffu, 0xffffffffu, 0x7f800001u};
    std::mt19937 random(5);
    while (bits.size() < 5000) bits.push_back(static_cast<uint32_t>(random()));
    for (const uint32_t master : bits) {
        uint16_t model, remainder;
        split_bits(master, &model, &remainder);
        const float value = std::bit_cast<float>(master), upper = std::bit_cast<float>(uint32_t{model} << 16);
        const uint32_t again = join_bits(model, remainder);
        if (std::isnan(value)) {
            EXPECT_TRUE(std::isnan(upper) && std::isnan(std::bit_cast<float>(again))) << std::hex << master;
            continue;
        }
        EXPECT_EQ(again, master) << std::hex << master;
        if (!std::isfinite(upper)) continue;
        const float below = std::bit_cast<float>((uint32_t{model} - 1) << 16),
                    above = std::bit_cast<float>((uint32_t{model} + 1) << 16);
        const auto gap = [&](float other) { return std::abs(static_cast<double>(value) - other); };
        if (std::isfinite(above) && model % 0x8000 != 0) {
            EXPECT_TRUE(gap(upper) <= gap(below) && gap(upper) < gap(above)) << std::hex << master;
        }
    }
    // The kernels do that, both ways.
    Values values;
    for (const uint32_t master : bits)
        if (!std::isnan(std::bit_cast<float>(master))) values.push_back(std::bit_cast<float>(master));
    const Buffer master(DType::f32, values), again = Buffer::poisoned(DType::f32, values.size());
    const Buffer model = Buffer::poisoned(DType::bf16, values.size());
    const Buffer remainder(DType::bf16, Values(values.size(), 0));  // 16 bits, whatever they mean
    const auto count = static_cast<int64_t>(values.size());
    split_master(stream(), {count, master.as<float>(), model.data(), remainder.as<uint16_t>(), false});
    split_master(stream(), {count, again.as<float>(), model.data(), remainder.as<uint16_t>(), true});
    EXPECT_EQ(again.read(), values);
}

// With split masters the same bits as with masters beside the weights.
TEST(SplitMaster, AdamWGivesTheSameBits) {
    for (const size_t size : {1, 1003, 40000}) {
        const Values start = rounded(DType::bf16, random_normal(size));
        const Buffer w(DType::f32, start), m(DType::f32, Values(size, 0)), v(DType::f32, Values(size, 0)),
            m2(DType::f32, Values(size, 0)), v2(DType::f32, Values(size, 0)), model(DType::bf16, start),
            remainder(DType::bf16, Values(size, 0)), joined = Buffer::poisoned(DType::f32, size);
        const auto count = static_cast<int64_t>(size);
        for (int64_t step = 1; step <= 4; ++step) {
            const Buffer grad(DType::f32, rounded(DType::f32, random_normal(size, 0.01)));
            const AdamWTensor apart{count, w.data(), nullptr, grad.data(), m.data(), v.data(), 0.1};
            const AdamWTensor split{count,     nullptr,   model.data(), grad.data(),
                                    m2.data(), v2.data(), 0.1,          remainder.as<uint16_t>()};
            for (const AdamWTensor* one : {&apart, &split})
                adamw(stream(), {1, one, DType::f32, kRate, kBeta1, kBeta2, kEps, step, nullptr});
            synchronize(stream());
        }
        split_master(stream(), {count, joined.as<float>(), model.data(), remainder.as<uint16_t>(), true});
        EXPECT_EQ(joined.read(), w.read());
        EXPECT_EQ(m2.read(), m.read());
        EXPECT_EQ(v2.read(), v.read());
    }
}

// Gradients in bf16 give the same bits as the same gradients in f32, wherever they begin.
TEST(AdamW, TakesGradientsInBf16) {
    for (const size_t skipped : {0, 1, 4})
        for (const bool split : {false, true}) {
            const size_t size = 40003;
            const Values start = rounded(DType::bf16, random_normal(size));
            const auto count = static_cast<int64_t>(size - skipped);
            const Buffer scale(DType::f32, {0.625});
            std::vector<std::vector<Values>> results;
            for (const DType type : {DType::f32, DType::bf16}) {
                const Buffer w(DType::f32, start), m(DType::f32, Values(size, 0)),
                    v(DType::f32, Values(size, 0)), model(DType::bf16, start),
                    remainder(DType::bf16, Values(size, 0));
                for (int64_t step = 1; step <= 3; ++step) {
                    Values values;
                    for (size_t i = 0; i < size; ++i)
                        values.push_back(0.01 * std::sin(static_cast<double>(i) * static_cast<double>(step)));
                    const Buffer grad(type, rounded(DType::bf16, values));
                    AdamWTensor tensor{
                        count,        w.data(),
                        model.data(), static_cast<const char*>(grad.data()) + skipped * size_of(type),
                        m.data(),     v.data(),
                        0.1};
                    if (split) {
                        tensor.master = nullptr;
                        tensor.remainder = remainder.as<uint16_t>();
                    }
                    adamw(stream(), {1, &tensor, DType::f32, kRate, kBeta1, kBeta2, kEps, step, scale.data(),
                                     type == DType::bf16});
                    synchronize(stream());
                }
                if (split)
                    split_master(stream(),
                                 {count, w.as<float>(), model.data(), remainder.as<uint16_t>(), true});
                results.push_back({w.read(), m.read(), v.read(), model.read()});
            }
            EXPECT_EQ(results[0], results[1]) << skipped << " skipped, split " << split;
        }
}

// Over all random numbers the mean is the value itself, and each result one of its two neighbours: for every
// kind of number, also a second moment smaller than bf16's smallest.
TEST(MomentRounding, IsWithoutBias) {
    for (const float value : {1.0f, 1.001f, -1.001f, 1.00390625f, 3.0e-5f, 1.9999999f, 1e-38f, 7.3e-40f,
                              1e-45f, 4e-41f, -4e-41f, 0.0f, -0.0f, 3e38f, INFINITY, -INFINITY}) {
        const auto bits = std::bit_cast<uint32_t>(value);
        const auto wide = [](uint32_t upper) { return std::bit_cast<float>(upper << 16); };
        double sum = 0;
        for (uint32_t random = 0; random < 65536; ++random) {
            const uint16_t result = round_at_random(bits, random);
            ASSERT_TRUE(result == bits >> 16 || (result == (bits >> 16) + 1 && (bits & 0xffff) != 0))
                << value;
            sum += wide(result);
        }
        EXPECT_EQ(sum / 65536, value);
    }
    for (const uint32_t bits : {0x7fc00000u, 0x7f800001u, 0xffffffffu, 0x7fffffffu})
        for (const uint32_t random : {0u, 1u, 0xffffu})
            EXPECT_TRUE(std::isnan(static_cast<float>(std::bit_cast<bf16>(round_at_random(bits, random)))));
}

// The bits are independent between elements, between the two moments and between steps: of each pair the
// correlation, and of each alone the mean, are zero within 3.5 standard deviations of 2^18 samples.
TEST(MomentRounding, BitsAreAsRandomOnes) {
    std::mt19937 random(17);
    constexpr size_t count = size_t{1} << 18;
    const auto centred = [](uint32_t bits) { return (bits + 0.5) / 65536 - 0.5; };  // variance 1/12
    const auto expect_none = [&](const char* what, double sum, double variance) {
        EXPECT_LT(std::abs(sum) / std::sqrt(variance * count), 3.5) << what;
    };
    for (const uint64_t start : {uint64_t{0}, (uint64_t{1} << 32) - count / 2}) {
        const uint32_t key[2] = {static_cast<uint32_t>(random()), static_cast<uint32_t>(random())},
                       next[2] = {static_cast<uint32_t>(random()), static_cast<uint32_t>(random())};
        double m = 0, v = 0, both = 0, neighbours = 0, rows = 0, steps = 0, times = 0;
        for (size_t i = 0; i < count; ++i) {
            const uint64_t at = start + i;
            const auto x = rounding_bits(at, key[0], key[1]);
            const double mine = centred(x & 0xffff);
            m += mine;
            v += centred(x >> 16);
            both += mine * centred(x >> 16);
            neighbours += mine * centred(rounding_bits(at + 1, key[0], key[1]) & 0xffff);
            rows += mine * centred(rounding_bits(at + 4096, key[0], key[1]) & 0xffff);
            steps += mine * centred(rounding_bits(at, next[0], next[1]) & 0xffff);
            times += centred(
                rounding_bits(start, static_cast<uint32_t>(random()), static_cast<uint32_t>(random())) &
                0xffff);
        }
        expect_none("first moment", m, 1.0 / 12);
        expect_none("second moment", v, 1.0 / 12);
        expect_none("one element at many steps", times, 1.0 / 12);
        expect_none("the moments", both, 1.0 / 144);
        expect_none("neighbours", neighbours, 1.0 / 144);
        expect_none("rows", rows, 1.0 / 144);
        expect_none("steps", steps, 1.0 / 144);
    }
}

// With betas of 0 the moments are the gradient and its square: known to the bit before they are rounded. The
// kernels round as the function says, by the number of an element in the whole parameter, wherever it lies.
TEST(MomentRounding, AdamWRoundsByTheNumberOfAnElement) {
    const size_t size = 40003;
    const Values gradients = rounded(DType::bf16, random_normal(size, 0.01));
    const MomentRounding places[] = {{{7, 9}},
                                     {{0xdeadbeef, 5}, (int64_t{1} << 32) - 1000},
                                     {{1, 2}, 3 * 4000 + 1000 + 17, 17, 1000, 3000},  // columns of a matrix
                                     {{3, 4}, (int64_t{1} << 33) + 5, 5, 37, 111}};
    for (const bool split : {false, true})
        for (const DType type : {DType::f32, DType::bf16})
            for (const size_t skipped : {0, 1, 8}) {
                // f32 whose lower bits are not zero, where gradients are f32.
                Values values = gradients;
                if (type == DType::f32)
                    for (double& value : values) value = static_cast<float>(value * 1.2345);
                const Buffer grad(type, values);
                for (const MomentRounding& place : places) {
                    const Values zeros(size, 0);
                    const Buffer m(DType::bf16, zeros), v(DType::bf16, zeros), w(DType::f32, zeros),
                        model(DType::bf16, zeros), remainder(DType::bf16, zeros);
                    const auto count = static_cast<int64_t>(size - skipped);
                    const AdamWTensor tensor{count,
                                             split ? nullptr : w.at(skipped),
                                             model.at(skipped),
                                             grad.at(skipped),
                                             m.at(skipped),
                                             v.at(skipped),
                                             0.1,
                                             split ? remainder.as<uint16_t>() + skipped : nullptr};
                    adamw(stream(), {.tensors = 1,
                                     .list = &tensor,
                                     .acc = DType::f32,
                                     .learning_rate = kRate,
                                     .beta1 = 0,
                                     .beta2 = 0,
                                     .eps = kEps,
                                     .step = 1,
                                     .grad_scale_pointer = nullptr,
                                     .bf16_gradients = type == DType::bf16,
                                     .rounding = &place});
                    const Values got_m = m.read(), got_v = v.read();
                    size_t wrong = 0;
                    for (size_t i = skipped; i < size; ++i) {
                        const auto g = static_cast<float>(values[i]);
                        const auto at = static_cast<int64_t>(i - skipped);
                        const auto number = static_cast<uint64_t>(
                            place.first + at + (place.column + at) / place.columns * place.gap);
                        const uint32_t random = rounding_bits(number, place.key[0], place.key[1]);
                        const auto is = [&](double got, float value, uint32_t bits) {
                            return std::bit_cast<uint32_t>(static_cast<float>(got)) ==
                                   uint32_t{round_at_random(std::bit_cast<uint32_t>(value), bits)} << 16;
                        };
                        wrong += !is(got_m[i], g, random & 0xffff) || !is(got_v[i], g * g, random >> 16);
                    }
                    EXPECT_EQ(wrong, 0u) << "skipped " << skipped << " split " << split << " gradients "
                                         << to_string(type) << " first " << place.first;
                    for (size_t i = 0; i < skipped; ++i) EXPECT_EQ(got_m[i], 0);
                }
            }
}

// A second moment falls by a thousandth a step, less than half of bf16's spacing: rounded to nearest it would
// stay. The moments' means over many elements follow the exact ones within 3 standard deviations, and so does
// the weight.
TEST(MomentRounding, MomentsFollowTheExactOnes) {
    constexpr size_t size = 20000;
    constexpr double beta2 = 0.999;
    const Values zeros(size, 0);
    const Buffer m(DType::bf16, zeros), v(DType::bf16, zeros), w(DType::f32, zeros),
        exact_m(DType::f32, zeros), exact_v(DType::f32, zeros), exact_w(DType::f32, zeros);
    const Buffer pulse(DType::f32, Values(size, 0.3)), none(DType::f32, zeros);
    std::mt19937 random(23);
    for (int64_t step = 1; step <= 300; ++step) {
        const MomentRounding rounding{{static_cast<uint32_t>(random()), static_cast<uint32_t>(random())}};
        const void* grad = (step <= 10 ? pulse : none).data();
        const AdamWTensor narrow{size, w.data(), nullptr, grad, m.data(), v.data(), 0},
            wide{size, exact_w.data(), nullptr, grad, exact_m.data(), exact_v.data(), 0};
        for (const bool is_narrow : {false, true})
            adamw(stream(), {1, is_narrow ? &narrow : &wide, DType::f32, kRate, kBeta1, beta2, kEps, step,
                             nullptr, false, is_narrow ? &rounding : nullptr});
    }
    const auto check = [&](const char* what, const Values& values, double exact) {
        double mean = 0, square = 0;
        for (const double value : values) mean += value / size;
        for (const double value : values) square += (value - mean) * (value - mean) / size;
        EXPECT_GT(square, 0) << what;
        EXPECT_LT(std::abs(mean - exact), 3 * std::sqrt(square / size) + 1e-6 * std::abs(exact)) << what;
        EXPECT_LT(std::sqrt(square), 0.1 * std::abs(exact)) << what;
    };
    check("first moment", m.read(), exact_m.read()[0]);
    check("second moment", v.read(), exact_v.read()[0]);
    EXPECT_NEAR(w.read()[7] / exact_w.read()[7], 1, 0.02);
    for (const double value : v.read()) EXPECT_GT(value, 0);
}

TEST(SumOfSquares, OverManyTensors) {
    for (const DType dtype : floating_types()) {
        SCOPED_TRACE(fmt::format("{} seed {}", to_string(dtype), seed()));
        const std::vector<size_t> sizes{3, 0, 50001, 16384};
        std::vector<Buffer> buffers;
        std::vector<const void*> list;
        std::vector<int64_t> counts;
        double expected = 0;
        for (const size_t size : sizes) {
            const Values x = rounded(dtype, random_normal(size));
            for (const double v : x) expected += v * v;
            buffers.emplace_back(dtype, x);
            list.push_back(buffers.back().data());
            counts.push_back(static_cast<int64_t>(size));
        }
        Values first;
        for (int trial = 0; trial < 3; ++trial) {
            const Threads threads(trial + 1);
            const Buffer out = Buffer::poisoned(DType::f64, 1);
            sum_of_squares(stream(), {static_cast<int64_t>(list.size()), list.data(), counts.data(), dtype,
                                      out.as<double>()});
            if (trial == 0) first = out.read();
            EXPECT_EQ(out.read(), first);
            EXPECT_NEAR(out.read()[0], expected, 1e-12 * expected);  // float64 whatever the elements are
        }
    }
    // 1e30 squared is no float32.
    const Buffer large(DType::f32, {1e30, 1e30}), out = Buffer::poisoned(DType::f64, 1);
    const void* pointer = large.data();
    const int64_t count = 2;
    sum_of_squares(stream(), {1, &pointer, &count, DType::f32, out.as<double>()});
    EXPECT_NEAR(out.read()[0], 2e60, 1e54);
    sum_of_squares(stream(), {0, nullptr, nullptr, DType::f32, out.as<double>()});
    EXPECT_EQ(out.read()[0], 0);
}

TEST(ClipScale, ScalesOnlyWhatIsTooLong) {
    for (const DType acc : {DType::f64, DType::f32})
        for (const auto& [norm, max_norm, expected] :
             {std::tuple{2.0, 1.0, 1 / (2 + 1e-6)}, {0.5, 1.0, 1.0}, {100.0, 0.0, 1.0}, {0.0, 1.0, 1.0}}) {
            const Buffer sum(DType::f64, {norm * norm}), grad_norm = Buffer::poisoned(DType::f64, 1);
            const Buffer scale = Buffer::poisoned(acc, 1);
            clip_scale(stream(), {sum.as<double>(), max_norm, grad_norm.as<double>(), acc, scale.data()});
            EXPECT_DOUBLE_EQ(grad_norm.read()[0], norm);
            EXPECT_NEAR(scale.read()[0], expected, tolerance(acc));
        }
}

}  // namespace
}  // namespace levin::kernels::test
