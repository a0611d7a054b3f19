// The benchmarks run and say what they promise; their numbers are another matter.
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "checkpoint/safetensors.h"
#include "tests/launch/program.h"

namespace levin::testing {
namespace {

const std::string kTiny =
    source_folder() + "/configs/tiny.yaml trainer.sequence_length=64 --threads 1 --json";

std::vector<nlohmann::json> rows_of(const Outcome& outcome) {
    std::vector<nlohmann::json> rows;
    std::istringstream lines(outcome.output);
    for (std::string line; std::getline(lines, line);) {
        const auto row = nlohmann::json::parse(line, nullptr, false);
        if (row.is_object()) rows.push_back(row);
    }
    return rows;
}

// The rows that have a field of this name.
std::vector<nlohmann::json> with(const std::vector<nlohmann::json>& rows, const std::string& field) {
    std::vector<nlohmann::json> result;
    for (const auto& row : rows)
        if (row.contains(field)) result.push_back(row);
    return result;
}

TEST(Bench, StepCountsItsProductsAndItsMemory) {
    const Outcome outcome =
        shell(levin() + " bench step " + kTiny + " --repeats 2 --accumulate 3 --profile --memory");
    ASSERT_EQ(outcome.status, 0) << outcome.output;
    const auto rows = rows_of(outcome);
    const auto step = with(rows, "share_of_products");
    ASSERT_EQ(step.size(), 1u) << outcome.output;
    EXPECT_GT(step[0]["products_ms"].get<double>(), 0);
    EXPECT_EQ(step[0]["micro_batches"], 3);
    // What it is the middle of, and between what: an entry each.
    const auto spreads = with(rows, "quantity");
    ASSERT_EQ(spreads.size(), 4u) << outcome.output;
    for (const auto& spread : spreads) {
        const std::string name = spread["quantity"];
        const double median = spread["median"];
        EXPECT_LE(spread["lower_quartile"].get<double>(), median) << name;
        EXPECT_GE(spread["upper_quartile"].get<double>(), median) << name;
        EXPECT_NEAR(median, step[0][name].get<double>(), 1e-3 * (1 + median)) << name;
    }

    // 4 layers of 4 linears with 3 products each and the head's 3, for each of 3 micro-batches; the sums of
    // all but the first micro-batch are added.
    int64_t products = 0, added = 0;
    for (const auto& row : with(rows, "product")) {
        if (row["product"] == "all") continue;
        products += row["count"].get<int64_t>();
        if (row["product"].get<std::string>().ends_with("added")) added += row["count"].get<int64_t>();
    }
    EXPECT_EQ(products, 3 * (4 * 4 + 1) * 3);
    EXPECT_EQ(added, 2 * (4 * 4 + 1));
    EXPECT_FALSE(with(rows, "kernel").empty());

    double sum = 0, peak = 0;
    for (const auto& row : with(rows, "category"))
        if (row["op"] == "all") (row["category"] == "peak" ? peak : sum) += row["gib"].get<double>();
    EXPECT_GT(peak, 0);
    EXPECT_NEAR(sum, peak, 0.003);
}

TEST(Bench, GemmAndDecodeRun) {
    const Outcome gemm =
        shell(levin() + " bench gemm --tokens 64 --hidden 32 --glu 64 --vocab 70 --threads 1 --json");
    ASSERT_EQ(gemm.status, 0) << gemm.output;
    EXPECT_EQ(rows_of(gemm).size(), 15u);
    const Outcome decode = shell(levin() + " bench decode " + kTiny + " --positions 10,200 --tokens 3");
    ASSERT_EQ(decode.status, 0) << decode.output;
    EXPECT_EQ(rows_of(decode).size(), 2u);
    const Outcome profile =
        shell(levin() + " bench decode " + kTiny + " --positions 10 --tokens 3 --no-prefill --profile");
    ASSERT_EQ(profile.status, 0) << profile.output;
    size_t products = 0;  // a layer's four by shape, and the head's
    for (const auto& row : with(rows_of(profile), "kernel"))
        products += row["kernel"].get<std::string>().starts_with("decode_linear 1 x ");
    EXPECT_EQ(products, 5u);
}

TEST(Bench, AttentionTakesTheSlopesAskedFor) {
    const auto steepest = [](const std::string& slopes) {
        const Outcome outcome =
            shell(levin() + " bench attention --heads 2 --head-dim 8 --tokens 64 --lengths 32,64 --rounds 1" +
                  " --threads 1 --json " + slopes);
        EXPECT_EQ(outcome.status, 0) << outcome.output;
        std::vector<double> values;
        for (const auto& row : rows_of(outcome)) values.push_back(row["steepest_slope"].get<double>());
        EXPECT_EQ(values.size(), 2u) << outcome.output;
        return values.empty() ? -1 : values.back();
    };
    // Of two heads the first has 2^-4 in layer 0, and 1e-5 of that in the last.
    EXPECT_NEAR(steepest("--layer 0"), 0.0625, 1e-4);
    EXPECT_NEAR(steepest("--layer 23"), 0.0625e-5, 1e-8);
    EXPECT_EQ(steepest("--no-decay"), 0);
    EXPECT_NE(shell(levin() + " bench attention --no-decay --layer 3").status, 0);
}

// Two tokens of one head with a slope of log 2, by hand: o_1 = q_1.k_1 v_1, o_2 = q_2.k_1 v_1 / 2 + q_2.k_2
// v_2.
TEST(Bench, AttentionOfAFile) {
    const TemporaryFolder folder;
    const auto write = [&](int64_t slopes) {
        const Shape shape{1, 2, 1, 2}, heads{slopes};
        SafetensorsWriter writer(folder / "in.safetensors", {{"q", DType::f32, shape},
                                                             {"k", DType::f32, shape},
                                                             {"v", DType::f32, shape},
                                                             {"d_o", DType::f32, shape},
                                                             {"slopes", DType::f32, heads}});
        writer.write("q", Tensor::from<float>(shape, {1, 2, 3, 4}));
        writer.write("k", Tensor::from<float>(shape, {5, 6, 7, 8}));
        writer.write("v", Tensor::from<float>(shape, {1, 0, 0, 1}));
        writer.write("d_o", Tensor::from<float>(shape, {1, 0, 1, 1}));
        writer.write("slopes", Tensor::full(heads, std::log(2.0), DType::f32));
        writer.finish();
    };
    const std::string command = levin() + " bench attention --activation none --inputs " +
                                (folder / "in.safetensors") + " --outputs " + (folder / "out.safetensors");
    write(1);
    const Outcome outcome = shell(command);
    ASSERT_EQ(outcome.status, 0) << outcome.output;
    const SafetensorsReader results(folder / "out.safetensors");
    const auto expect = [&](const std::string& name, const std::vector<double>& values) {
        const std::vector<double> got = results.read(name).to_vector();
        ASSERT_EQ(got.size(), values.size()) << name;
        for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], values[i], 1e-4) << name << " " << i;
    };
    expect("o", {17, 0, 19.5, 53});
    expect("dq", {5, 6, 9.5, 11});
    expect("dk", {2.5, 4, 3, 4});
    expect("dv", {36.5, 19.5, 53, 53});
    write(2);
    const Outcome wrong = shell(command);
    EXPECT_NE(wrong.status, 0);
    EXPECT_TRUE(wrong.says("slopes of")) << wrong.output;
}

}  // namespace
}  // namespace levin::testing
