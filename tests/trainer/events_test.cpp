#include "trainer/events.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "tests/temporary_folder.h"
#include "trainer/proto/events.pb.h"

namespace levin {
namespace {

using test::read_text;
using test::TemporaryFolder;

// RFC 3720, appendix B.4, and the check value of the algorithm.
TEST(Crc32c, KnownAnswers) {
    EXPECT_EQ(crc32c("123456789", 9), 0xe3069283u);
    EXPECT_EQ(crc32c("", 0), 0u);
    const std::string zeros(32, '\0'), ones(32, '\xff');
    EXPECT_EQ(crc32c(zeros.data(), 32), 0x8a9136aau);
    EXPECT_EQ(crc32c(ones.data(), 32), 0x62a8ab43u);
    std::string ascending;
    for (int i = 0; i < 32; ++i) ascending += static_cast<char>(i);
    EXPECT_EQ(crc32c(ascending.data(), 32), 0x46dd794eu);
}

TEST(Crc32c, Masked) {
    const uint32_t crc = 0xe3069283u;
    EXPECT_EQ(masked_crc32c("123456789", 9), ((crc >> 15) | (crc << 17)) + 0xa282ead8u);
}

// Reads every record, checking both checksums.
std::vector<events::Event> read_events(const std::string& path) {
    const std::string bytes = read_text(path);
    std::vector<events::Event> result;
    for (size_t at = 0; at < bytes.size();) {
        uint64_t length = 0;
        uint32_t length_crc = 0, data_crc = 0;
        EXPECT_LE(at + 12, bytes.size());
        std::memcpy(&length, bytes.data() + at, 8);
        std::memcpy(&length_crc, bytes.data() + at + 8, 4);
        EXPECT_EQ(length_crc, masked_crc32c(bytes.data() + at, 8));
        EXPECT_LE(at + 16 + length, bytes.size());
        std::memcpy(&data_crc, bytes.data() + at + 12 + length, 4);
        EXPECT_EQ(data_crc, masked_crc32c(bytes.data() + at + 12, length));
        events::Event event;
        EXPECT_TRUE(event.ParseFromArray(bytes.data() + at + 12, static_cast<int>(length)));
        result.push_back(event);
        at += 16 + length;
    }
    return result;
}

TEST(EventWriter, WritesVersionThenScalars) {
    const TemporaryFolder folder;
    EventWriter writer(folder.path(), 0);
    writer.write(7, {{"loss", 2.5}, {"learning_rate", 3e-4}});
    EXPECT_NE(writer.path().find("/events.out.tfevents."), std::string::npos);
    const auto events = read_events(writer.path());  // flushed: the writer is still open
    ASSERT_EQ(events.size(), 2u);
    EXPECT_EQ(events[0].file_version(), "brain.Event:2");
    EXPECT_GT(events[0].wall_time(), 1.5e9);
    EXPECT_EQ(events[1].step(), 7);
    ASSERT_EQ(events[1].summary().value_size(), 2);
    EXPECT_EQ(events[1].summary().value(0).tag(), "loss");
    EXPECT_EQ(events[1].summary().value(0).simple_value(), 2.5f);
    EXPECT_EQ(events[1].summary().value(1).simple_value(), 3e-4f);
}

// The bytes of a record as TensorBoard's own format has them; field numbers 1, 2, 5 and in it 1, in that 1
// and 2.
TEST(EventWriter, BytesOnTheWire) {
    const TemporaryFolder folder;
    EventWriter writer(folder.path(), 0);
    const size_t header = read_text(writer.path()).size();
    writer.write(300, {{"a", 1.0}});
    const std::string record = read_text(writer.path()).substr(header);
    const std::string data = record.substr(12, record.size() - 16);
    EXPECT_EQ(data[0], '\x09');  // field 1, 8 bytes: wall time
    const std::string rest = data.substr(9);
    EXPECT_EQ(rest, std::string("\x10\xac\x02"           // field 2, varint 300
                                "\x2a\x0a\x0a\x08"       // field 5, 10 bytes; field 1, 8 bytes
                                "\x0a\x01\x61"           // field 1: "a"
                                "\x15\x00\x00\x80\x3f",  // field 2: 1.0f
                                15));
}

TEST(EventWriter, EveryStartHasItsOwnFileAndAResumeForgetsLostSteps) {
    const TemporaryFolder folder;
    EventWriter first(folder.path(), 0), second(folder.path(), 14);
    EXPECT_NE(first.path(), second.path());
    const auto events = read_events(second.path());
    ASSERT_EQ(events.size(), 2u);
    EXPECT_EQ(events[1].step(), 14);
    EXPECT_EQ(events[1].session_log().status(), events::SessionLog::START);
}

TEST(EventWriter, KeepsNumbersThatAreNone) {
    const TemporaryFolder folder;
    EventWriter writer(folder.path(), 0);
    writer.write(1, {{"loss", std::numeric_limits<double>::quiet_NaN()}});
    EXPECT_TRUE(std::isnan(read_events(writer.path())[1].summary().value(0).simple_value()));
}

TEST(EventWriter, AFolderThatCannotBeWrittenCostsAWarning) {
    const TemporaryFolder folder;
    ::testing::internal::CaptureStderr();
    EventWriter writer(folder / "gone", 0);
    EXPECT_NO_THROW(writer.write(1, {{"loss", 1.0}}));
    const std::string warnings = ::testing::internal::GetCapturedStderr();
    EXPECT_NE(warnings.find("training goes on"), std::string::npos);
    EXPECT_EQ(warnings.find("warning"), warnings.rfind("warning"));
}

}  // namespace
}  // namespace levin
