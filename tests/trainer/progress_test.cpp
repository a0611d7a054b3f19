#include "trainer/progress.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <limits>

#include "tests/temporary_folder.h"

namespace levin {
namespace {

using test::read_text;
using test::TemporaryFolder;

StepMetrics row_of(int64_t step) {
    StepMetrics row;
    row.step = step;
    row.loss = 2.34567;
    row.tokens_per_second = 12345;
    row.mfu = 0.412;
    row.learning_rate = 3e-4;
    row.grad_norm = 0.8123;
    return row;
}

TEST(Progress, Durations) {
    EXPECT_EQ(format_duration(0.2), "0s");
    EXPECT_EQ(format_duration(59.4), "59s");
    EXPECT_EQ(format_duration(59.6), "1m00s");
    EXPECT_EQ(format_duration(3599), "59m59s");
    EXPECT_EQ(format_duration(7500), "2h05m");
    EXPECT_EQ(format_duration(4 * 86400 + 3 * 3600), "4d03h");
    EXPECT_EQ(format_duration(std::numeric_limits<double>::infinity()), "?");
    EXPECT_EQ(format_duration(std::nan("")), "?");
}

TEST(Progress, Counts) {
    EXPECT_EQ(format_count(0), "0");
    EXPECT_EQ(format_count(999), "999");
    EXPECT_EQ(format_count(999.7), "1.00K");
    EXPECT_EQ(format_count(1250000), "1.25M");
    EXPECT_EQ(format_count(12345), "12.3K");
    EXPECT_EQ(format_count(123456), "123K");
}

TEST(Progress, TheLineFitsItsWidth) {
    const std::string whole = format_progress(row_of(120), 1000, 200, 1000);
    EXPECT_EQ(whole,
              "step 120/1000  loss 2.3457  12.3K tok/s  left 3m20s  MFU 41.2%  lr 3.00e-04  norm 0.812");
    for (int width = 0; width < 120; ++width) {
        const std::string line = format_progress(row_of(120), 1000, 200, width);
        EXPECT_LE(line.size(), static_cast<size_t>(width));
        EXPECT_TRUE(whole.starts_with(line));
    }
}

TEST(Progress, PlainLinesWhereTheOutputIsNoTerminal) {
    const TemporaryFolder folder;
    std::FILE* file = std::fopen((folder / "out").c_str(), "w");
    ASSERT_NE(file, nullptr);
    {
        Progress progress(25, 0, 10, file);
        for (int step = 1; step <= 25; ++step) progress.update(row_of(step), step);
        progress.message("checkpoint saved");
        progress.finish();
    }
    std::fclose(file);
    const std::string text = read_text(folder / "out");
    EXPECT_EQ(text.find('\r'), std::string::npos);
    EXPECT_EQ(text.find('\x1b'), std::string::npos);
    size_t lines = 0;
    for (const char c : text) lines += c == '\n';
    EXPECT_EQ(lines, 5u) << text;  // steps 1, 10, 20, 25 and the message
    for (const char* part : {"step 1/25", "step 10/25", "step 20/25", "step 25/25", "checkpoint saved\n"})
        EXPECT_NE(text.find(part), std::string::npos) << part;
}

// A pseudo-terminal of 40 columns.
TEST(Progress, OneLineRedrawnOnATerminal) {
    const int master = ::posix_openpt(O_RDWR | O_NOCTTY);
    ASSERT_GE(master, 0);
    ASSERT_EQ(::grantpt(master), 0);
    ASSERT_EQ(::unlockpt(master), 0);
    std::FILE* terminal = std::fopen(::ptsname(master), "w");
    ASSERT_NE(terminal, nullptr);
    winsize size{};
    size.ws_col = 40;
    ASSERT_EQ(::ioctl(master, TIOCSWINSZ, &size), 0);
    {
        Progress progress(3, 0, 1, terminal);
        for (int step = 1; step <= 3; ++step) progress.update(row_of(step), step);
        progress.message("saved");
    }
    std::fclose(terminal);
    std::string
        text;  // the kernel hands it on in pieces, and an error once all is read from a closed terminal
    char buffer[4096];
    for (ssize_t n; (n = ::read(master, buffer, sizeof buffer)) > 0;)
        text.append(buffer, static_cast<size_t>(n));
    ::close(master);
    EXPECT_NE(text.find("\rstep 1/3"), std::string::npos);
    EXPECT_NE(text.find("\rstep 3/3"), std::string::npos);  // the last one is always drawn
    EXPECT_NE(text.find("\r\x1b[Ksaved"), std::string::npos);
    EXPECT_EQ(text.find("MFU"), std::string::npos);  // no room
    EXPECT_EQ(text.back(), '\n');
}

TEST(Progress, AnOutputThatCannotBeWrittenIsNoError) {
    std::FILE* full = std::fopen("/dev/full", "w");
    ASSERT_NE(full, nullptr);
    {
        Progress progress(3, 0, 1, full);
        EXPECT_NO_THROW(progress.update(row_of(1), 1));
    }
    std::fclose(full);
}

}  // namespace
}  // namespace levin
