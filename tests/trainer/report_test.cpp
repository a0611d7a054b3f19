#include "trainer/report.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>

#include "kernels/base/error.h"
#include "tests/temporary_folder.h"
#include "trainer/config.h"

namespace levin {
namespace {

using test::read_text;
using test::TemporaryFolder;

std::vector<StepMetrics> rows_of(int64_t count) {
    std::vector<StepMetrics> rows;
    for (int64_t step = 1; step <= count; ++step) {
        StepMetrics row;
        row.step = step;
        row.tokens = step * 4096;
        row.loss = 2 + 3.5 / std::sqrt(static_cast<double>(step));
        row.learning_rate = 1e-3;
        row.grad_norm = 0.5;
        row.step_ms = 100;
        row.tokens_per_second = 40960;
        row.mfu = 0.4;
        if (step % 100 == 0) row.validation_loss = row.loss + 0.1;
        rows.push_back(row);
    }
    return rows;
}

nlohmann::json data_of(const std::string& page) {
    const std::string begin = "<script type=\"application/json\" id=\"data\">";
    const size_t at = page.find(begin) + begin.size();
    return nlohmann::json::parse(page.substr(at, page.find("</script>", at) - at));
}

TEST(Report, ShortCurvesKeepEveryPoint) {
    EXPECT_TRUE(decimate({}, 10).empty());
    EXPECT_EQ(decimate({3, 1, 2}, 10), (std::vector<size_t>{0, 1, 2}));
}

TEST(Report, LongCurvesKeepSpikesGapsAndEnds) {
    std::vector<double> values(100000);
    for (size_t i = 0; i < values.size(); ++i) values[i] = std::sin(static_cast<double>(i) * 1e-3);
    values[12345] = 50;
    values[54321] = -50;
    values[77777] = std::nan("");
    const auto kept = decimate(values, 1000);
    EXPECT_LE(kept.size(), 2003u);
    EXPECT_TRUE(std::is_sorted(kept.begin(), kept.end()));
    EXPECT_EQ(std::adjacent_find(kept.begin(), kept.end()), kept.end());
    for (const size_t i : {0ul, 12345ul, 54321ul, 77777ul, 99999ul})
        EXPECT_TRUE(std::binary_search(kept.begin(), kept.end(), i)) << i;
}

TEST(Report, HasEveryCurveAndTheSummary) {
    const auto run = data_of(report_html({{"a", "", rows_of(300)}}))["runs"][0];
    for (const char* name : {"loss", "validation_loss", "learning_rate", "grad_norm", "tokens_per_second",
                             "mfu", "data_wait_ms"})
        for (const char* part : {"step", "tokens", "hours", "value"})
            EXPECT_EQ(run["curves"][name][part].size(), std::string(name) == "validation_loss" ? 3u : 300u)
                << name;
    EXPECT_EQ(run["summary"]["steps"], 300);
    EXPECT_EQ(run["summary"]["tokens"], 300 * 4096);
    EXPECT_NEAR(run["summary"]["hours"].get<double>(), 300 * 0.1 / 3600, 1e-8);
    EXPECT_NEAR(run["summary"]["best_validation"].get<double>(), 2.1 + 3.5 / std::sqrt(300.0), 1e-4);
    EXPECT_EQ(run["summary"]["tokens_per_second"], 40960);
    EXPECT_EQ(run["summary"]["bad"], 0);
}

TEST(Report, RefersToNothingOutside) {
    const std::string page = report_html({{"a", "", rows_of(3)}});
    std::string text = page;
    const std::string name_space = "http://www.w3.org/2000/svg";  // a name, nothing is fetched from there
    for (size_t at; (at = text.find(name_space)) != std::string::npos;) text.erase(at, name_space.size());
    for (const char* part :
         {"http:", "https:", "src=", "href=", "@import", "url(//", "fetch(", "XMLHttpRequest"})
        EXPECT_EQ(text.find(part), std::string::npos) << part;
}

TEST(Report, NumbersThatAreNoneAndEmptyRuns) {
    auto rows = rows_of(10);
    rows[4].loss = std::nan("");
    rows[5].grad_norm = std::numeric_limits<double>::infinity();
    const auto run = data_of(report_html({{"a", "", rows}}))["runs"][0];
    EXPECT_TRUE(run["curves"]["loss"]["value"][4].is_null());
    EXPECT_TRUE(run["curves"]["grad_norm"]["value"][5].is_null());
    EXPECT_EQ(run["summary"]["bad"], 1);
    EXPECT_EQ(data_of(report_html({{"empty", "", {}}}))["runs"][0]["curves"]["loss"]["value"].size(), 0u);
    EXPECT_EQ(data_of(report_html({}))["runs"].size(), 0u);
}

TEST(Report, AHostileNameStaysAText) {
    const std::string name = "</script><script>alert(1)</script>\xff\"\\";
    const std::string page = report_html({{name, name, rows_of(2)}});
    EXPECT_EQ(page.find("<script>alert"), std::string::npos);
    const auto run = data_of(page)["runs"][0];
    EXPECT_TRUE(run["name"].get<std::string>().starts_with("</script><script>alert(1)</script>"));
}

TEST(Report, AHundredThousandRowsGiveASmallPageQuickly) {
    const auto start = std::chrono::steady_clock::now();
    const std::string page = report_html({{"long", "", rows_of(100000)}});
    EXPECT_LT(page.size(), 1200000u);
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
}

TEST(Report, IsBuiltFromRunFolders) {
    const TemporaryFolder folder;
    Config config;
    config.run.name = "first \"try\"";
    for (const char* name : {"one", "two"}) {
        std::string lines;
        for (const StepMetrics& row : rows_of(20)) lines += to_json(row) + "\n";
        folder.write(std::string(name) + "/metrics.jsonl", lines + "{\"step\":21,\"lo");
    }
    folder.write("one/config.yaml", to_yaml(config));
    write_report({folder / "one", folder / "two/"}, folder / "compare.html");
    const auto runs = data_of(read_text(folder / "compare.html"))["runs"];
    ASSERT_EQ(runs.size(), 2u);
    EXPECT_EQ(runs[0]["name"], "first \"try\"");
    EXPECT_EQ(runs[0]["config"], to_yaml(config));
    EXPECT_EQ(runs[1]["name"], "two");
    EXPECT_EQ(runs[1]["summary"]["steps"], 20);
    EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 3);  // no temporary file
}

TEST(Report, WrongFoldersAreErrors) {
    const TemporaryFolder folder;
    try {
        write_report({folder / "none"}, folder / "report.html");
        FAIL() << "no error";
    } catch (const Error& error) {
        EXPECT_EQ(error.fault(), Fault::input);
        EXPECT_NE(std::string(error.what()).find("none/metrics.jsonl"), std::string::npos) << error.what();
    }
    folder.write("run/metrics.jsonl", "");
    EXPECT_THROW(write_report({folder / "run"}, folder / "no/report.html"), Error);
}

}  // namespace
}  // namespace levin
