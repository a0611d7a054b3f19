// The benchmarks run and say what they promise; their numbers are another matter.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

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
}

}  // namespace
}  // namespace levin::testing
