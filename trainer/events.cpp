#include "trainer/events.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>

#include "trainer/proto/events.pb.h"

namespace levin {

static_assert(std::endian::native == std::endian::little, "event records are little-endian");

uint32_t crc32c(const void* data, size_t bytes) {
    static const std::array<uint32_t, 256> table = [] {
        std::array<uint32_t, 256> entries{};
        for (uint32_t i = 0; i < 256; ++i) {
            uint32_t value = i;
            for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ (value & 1 ? 0x82f63b78u : 0u);
            entries[i] = value;
        }
        return entries;
    }();
    uint32_t crc = ~0u;
    for (const auto* p = static_cast<const uint8_t*>(data); bytes > 0; ++p, --bytes)
        crc = (crc >> 8) ^ table[(crc ^ *p) & 0xffu];
    return ~crc;
}

uint32_t masked_crc32c(const void* data, size_t bytes) {
    return std::rotr(crc32c(data, bytes), 15) + 0xa282ead8u;
}

namespace {

double now() {
    return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

std::string host_name() {
    std::array<char, 256> name{};
    if (::gethostname(name.data(), name.size() - 1) != 0 || name[0] == 0) return "localhost";
    return name.data();
}

std::string frame(const events::Event& event) {
    const std::string data = event.SerializeAsString();
    const uint64_t length = data.size();
    const uint32_t length_crc = masked_crc32c(&length, sizeof length);
    const uint32_t data_crc = masked_crc32c(data.data(), data.size());
    std::string record;
    record.append(reinterpret_cast<const char*>(&length), sizeof length);
    record.append(reinterpret_cast<const char*>(&length_crc), sizeof length_crc);
    record.append(data);
    record.append(reinterpret_cast<const char*>(&data_crc), sizeof data_crc);
    return record;
}

}  // namespace

EventWriter::EventWriter(const std::string& folder, int64_t first_step) {
    const double time = now();
    const std::string base =
        fmt::format("{}/events.out.tfevents.{}.{}", folder, static_cast<int64_t>(time), host_name());
    for (int n = 0; n < 1000; ++n) {  // several starts within one second
        path_ = n == 0 ? base : fmt::format("{}.{}", base, n);
        file_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (file_ >= 0 || errno != EEXIST) break;
    }
    if (file_ < 0) {
        warn(errno);
        return;
    }
    events::Event event;
    event.set_wall_time(time);
    event.set_file_version("brain.Event:2");
    append(frame(event));
    if (first_step > 0) {
        event.set_step(first_step);
        event.mutable_session_log()->set_status(events::SessionLog::START);
        append(frame(event));
    }
}

EventWriter::~EventWriter() {
    if (file_ >= 0) ::close(file_);
}

void EventWriter::write(int64_t step, const std::vector<std::pair<std::string, double>>& scalars) {
    if (file_ < 0) return;
    events::Event event;
    event.set_wall_time(now());
    event.set_step(step);
    for (const auto& [tag, value] : scalars) {
        events::Value* entry = event.mutable_summary()->add_value();
        entry->set_tag(tag);
        entry->set_simple_value(static_cast<float>(value));
    }
    append(frame(event));
}

void EventWriter::append(const std::string& record) {
    for (size_t done = 0; done < record.size();) {
        const ssize_t n = ::write(file_, record.data() + done, record.size() - done);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            warn(errno);
            // A reader stops at a torn record; should the cut fail too, later records are lost to it.
            if (::ftruncate(file_, size_) != 0 || ::lseek(file_, size_, SEEK_SET) < 0) return;
            return;
        }
        done += static_cast<size_t>(n);
    }
    size_ += static_cast<int64_t>(record.size());
}

void EventWriter::warn(int error) {
    if (!warned_)
        std::fputs(fmt::format("levin: warning: {} cannot be written: {}; training goes on without it\n",
                               path_, std::strerror(error))
                       .c_str(),
                   stderr);
    warned_ = true;
}

}  // namespace levin
