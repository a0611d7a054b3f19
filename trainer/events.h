// TensorBoard event files: Protocol Buffers records, each framed as
//   u64 length | u32 masked crc32c(length) | data | u32 masked crc32c(data)    (little-endian, as in TFRecord
//   files)
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace levin {

// CRC-32C (Castagnoli, reflected polynomial 0x82f63b78); crc32c("123456789") = 0xe3069283.
uint32_t crc32c(const void* data, size_t bytes);
// ((crc >> 15) | (crc << 17)) + 0xa282ead8
uint32_t masked_crc32c(const void* data, size_t bytes);

class EventWriter {
public:
    // Creates events.out.tfevents.<seconds>.<host>[.<n>] in `folder`, a new file for every start of a run. On
    // resume (first_step > 0) it tells TensorBoard to forget older events from first_step on. A file that
    // cannot be written costs one warning, never the training.
    EventWriter(const std::string& folder, int64_t first_step);
    ~EventWriter();
    EventWriter(const EventWriter&) = delete;
    EventWriter& operator=(const EventWriter&) = delete;

    // One record with a scalar per tag, flushed.
    void write(int64_t step, const std::vector<std::pair<std::string, double>>& scalars);

    const std::string& path() const { return path_; }

private:
    void append(const std::string& record);
    void warn(int error);

    std::string path_;
    int file_ = -1;
    int64_t size_ = 0;  // bytes of whole records
    bool warned_ = false;
};

}  // namespace levin
