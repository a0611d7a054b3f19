#include "trainer/metrics.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cmath>
#include <csignal>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>

#include "kernels/base/error.h"
#include "tests/temporary_folder.h"

namespace levin {
namespace {

using test::read_text;
using test::TemporaryFolder;

StepMetrics row_of(int64_t step) {
    StepMetrics row;
    row.step = step;
    row.tokens = step * 1024;
    row.loss = 5.0 / static_cast<double>(step);
    row.learning_rate = 3e-4;
    row.grad_norm = 1.0 / 3.0;
    row.step_ms = 12.5;
    return row;
}

std::vector<int64_t> steps_in(const std::string& path) {
    std::vector<int64_t> steps;
    for (const StepMetrics& row : read_metrics(path)) steps.push_back(row.step);
    return steps;
}

TEST(Metrics, ARowHasEveryFieldAndReadsBackToTheBit) {
    std::mt19937_64 random(1);
    std::uniform_real_distribution<double> uniform(1e-8, 10);
    for (int i = 0; i < 1000; ++i) {
        StepMetrics row = row_of(i + 1);
        for (double* field : {&row.loss, &row.learning_rate, &row.grad_norm, &row.step_ms,
                              &row.tokens_per_second, &row.mfu, &row.data_wait_ms, &row.peak_memory_gib})
            *field = uniform(random);
        if (i % 2) row.validation_loss = uniform(random);
        if (i % 3)
            for (std::optional<double>* field :
                 {&row.comm_ms, &row.exposed_comm_ms, &row.exposed_dp_ms, &row.exposed_pp_ms})
                *field = uniform(random);
        const auto json = nlohmann::json::parse(to_json(row));
        for (const char* name : {"step", "tokens", "loss", "learning_rate", "grad_norm", "step_ms",
                                 "tokens_per_second", "mfu", "data_wait_ms", "peak_memory_gib"})
            EXPECT_TRUE(json.contains(name)) << name;
        EXPECT_EQ(json.contains("validation_loss"), i % 2 == 1);
        for (const char* name : {"comm_ms", "exposed_comm_ms", "exposed_dp_ms", "exposed_pp_ms"})
            EXPECT_EQ(json.contains(name), i % 3 != 0) << name;
        EXPECT_FALSE(json.contains("exposed_tp_ms"));
        const auto back = parse_metrics_row(to_json(row));
        ASSERT_TRUE(back);
        EXPECT_EQ(to_json(*back), to_json(row));
        EXPECT_EQ(back->loss, row.loss);
        EXPECT_EQ(back->validation_loss, row.validation_loss);
        EXPECT_EQ(back->exposed_comm_ms, row.exposed_comm_ms);
        EXPECT_EQ(back->peak_memory_gib, row.peak_memory_gib);
    }
}

TEST(Metrics, NumbersThatJsonLacksAreNull) {
    StepMetrics row = row_of(1);
    row.loss = std::numeric_limits<double>::quiet_NaN();
    row.grad_norm = std::numeric_limits<double>::infinity();
    EXPECT_TRUE(nlohmann::json::parse(to_json(row))["loss"].is_null());
    const auto back = parse_metrics_row(to_json(row));
    ASSERT_TRUE(back);
    EXPECT_TRUE(std::isnan(back->loss));
    EXPECT_TRUE(std::isnan(back->grad_norm));
}

TEST(Metrics, TimingFieldsAreKnownAndComeAfterTheExactOnes) {
    for (const char* name : {"step_ms", "tokens_per_second", "mfu", "data_wait_ms", "peak_memory_gib",
                             "comm_ms", "exposed_comm_ms", "exposed_tp_ms"})
        EXPECT_TRUE(is_timing_field(name)) << name;
    for (const char* name : {"step", "tokens", "loss", "learning_rate", "grad_norm", "validation_loss"})
        EXPECT_FALSE(is_timing_field(name)) << name;
}

TEST(Metrics, OtherTextIsNoRow) {
    for (const char* text :
         {"", "{", "[]", "3", "{\"step\":1,\"loss\":2", "{\"loss\":2}", "{\"step\":1.5}", "null"})
        EXPECT_FALSE(parse_metrics_row(text)) << text;
    EXPECT_TRUE(parse_metrics_row("{\"step\":1,\"new_field\":[]}"));
}

TEST(MetricsWriter, EachRowIsInTheFileAsItIsWritten) {
    const TemporaryFolder folder;
    MetricsWriter writer(folder / "metrics.jsonl", 1);
    for (int step = 1; step <= 5; ++step) {
        writer.write(row_of(step));
        EXPECT_EQ(steps_in(folder / "metrics.jsonl").size(), static_cast<size_t>(step));
    }
}

TEST(MetricsWriter, ResumeRemovesLostWorkAndTheTornRow) {
    const TemporaryFolder folder;
    const std::string path = folder / "metrics.jsonl";
    {
        MetricsWriter writer(path, 1);
        for (int step = 1; step <= 9; ++step) writer.write(row_of(step));
    }
    const std::string whole = read_text(path);
    const std::string ninth = to_json(row_of(9)) + "\n";
    // Cut at every place inside the last row; the run goes on after step 6.
    for (size_t cut = 0; cut <= ninth.size(); ++cut) {
        folder.write("metrics.jsonl", whole.substr(0, whole.size() - cut));
        MetricsWriter writer(path, 7);
        writer.write(row_of(7));
        EXPECT_EQ(steps_in(path), (std::vector<int64_t>{1, 2, 3, 4, 5, 6, 7}));
        EXPECT_EQ(read_text(path).back(), '\n');
    }
    // A row that only lacks its line end is whole.
    folder.write("metrics.jsonl", whole.substr(0, whole.size() - 1));
    MetricsWriter writer(path, 10);
    writer.write(row_of(10));
    EXPECT_EQ(steps_in(path), (std::vector<int64_t>{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}));
}

TEST(MetricsWriter, AFreshStartAndGarbage) {
    const TemporaryFolder folder;
    const std::string path =
        folder.write("metrics.jsonl", std::string("garbage\n\0\n", 10) + to_json(row_of(1)) + "\n{\"st");
    { MetricsWriter writer(path, 2); }
    EXPECT_EQ(read_text(path), to_json(row_of(1)) + "\n");
    { MetricsWriter writer(path, 0); }
    EXPECT_EQ(read_text(path), "");
    EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 1);  // no temporary file
}

// A limit on file sizes fails writes in the middle of a row, as a full disk does.
TEST(MetricsWriter, AFullDiskWarnsOnceAndLosesNothing) {
    const TemporaryFolder folder;
    const std::string path = folder / "metrics.jsonl";
    const auto old_signal = std::signal(SIGXFSZ, SIG_IGN);
    rlimit old_limit{};
    ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old_limit), 0);
    MetricsWriter writer(path, 1);
    writer.write(row_of(1));
    const size_t one_row = read_text(path).size();
    ::testing::internal::CaptureStderr();
    rlimit limit = old_limit;
    limit.rlim_cur = one_row + one_row / 2;
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
    for (int step = 2; step <= 4; ++step) EXPECT_NO_THROW(writer.write(row_of(step)));
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &old_limit), 0);
    const std::string warnings = ::testing::internal::GetCapturedStderr();
    std::signal(SIGXFSZ, old_signal);
    EXPECT_NE(warnings.find("training goes on"), std::string::npos) << warnings;
    EXPECT_EQ(warnings.find("warning"), warnings.rfind("warning"));
    EXPECT_EQ(writer.pending_rows(), 3u);
    EXPECT_EQ(read_text(path), to_json(row_of(1)) + "\n");  // no half row stays behind
    writer.write(row_of(5));
    EXPECT_EQ(writer.pending_rows(), 0u);
    EXPECT_EQ(steps_in(path), (std::vector<int64_t>{1, 2, 3, 4, 5}));
}

TEST(MetricsWriter, AFolderThatIsNotThereIsAnError) {
    const TemporaryFolder folder;
    EXPECT_THROW(MetricsWriter(folder / "no/metrics.jsonl", 1), Error);
    EXPECT_THROW(read_metrics(folder / "no/metrics.jsonl"), Error);
}

}  // namespace
}  // namespace levin
