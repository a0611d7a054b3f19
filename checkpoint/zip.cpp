#include "checkpoint/zip.h"

#include <algorithm>
#include <cstring>

#include "kernels/base/error.h"

namespace levin {

namespace {

constexpr uint64_t kEndRecord = 22, kEnd64Record = 56, kEnd64Locator = 20, kDirectoryRecord = 46,
                   kLocalRecord = 30;
constexpr uint64_t kDirectoryLimit = 64u << 20;

// A little-endian number inside a buffer; outside of it, an error.
template <class T>
uint64_t number(const std::string& bytes, size_t at, const std::string& where) {
    LEVIN_REQUIRE(at <= bytes.size() && sizeof(T) <= bytes.size() - at, where,
                  "its zip directory is cut short");
    T value;
    std::memcpy(&value, bytes.data() + at, sizeof(T));
    return value;
}

std::string piece(const InputFile& file, uint64_t offset, uint64_t bytes) {
    std::string text(bytes, '\0');
    file.read(offset, text.data(), bytes);
    return text;
}

}  // namespace

StoredZip::StoredZip(const std::string& path) : file_(path) {
    const std::string where = "file " + path;
    LEVIN_REQUIRE(file_.size() >= kEndRecord, where, "is too short for a zip archive");
    const uint64_t tail_bytes = std::min<uint64_t>(file_.size(), kEndRecord + 65535);
    const uint64_t tail_begin = file_.size() - tail_bytes;
    const std::string tail = piece(file_, tail_begin, tail_bytes);
    const size_t end = tail.rfind("PK\5\6");
    LEVIN_REQUIRE(
        end != std::string::npos && tail.size() - end >= kEndRecord, where,
        "is no zip archive, or a truncated one; files of torch older than 1.6 are not read: load and save "
        "them again with a current torch");
    uint64_t count = number<uint16_t>(tail, end + 10, where), bytes = number<uint32_t>(tail, end + 12, where),
             offset = number<uint32_t>(tail, end + 16, where);
    if (end >= kEnd64Locator && tail.compare(end - kEnd64Locator, 4, "PK\6\7") == 0) {
        const uint64_t at = number<uint64_t>(tail, end - kEnd64Locator + 8, where);
        LEVIN_REQUIRE(at <= file_.size() && kEnd64Record <= file_.size() - at, where,
                      "its zip64 record lies outside");
        const std::string record = piece(file_, at, kEnd64Record);
        LEVIN_REQUIRE(record.starts_with("PK\6\6"), where, "its zip64 record is missing");
        count = number<uint64_t>(record, 32, where);
        bytes = number<uint64_t>(record, 40, where);
        offset = number<uint64_t>(record, 48, where);
    }
    LEVIN_REQUIRE(bytes <= kDirectoryLimit && count <= bytes / kDirectoryRecord && offset <= file_.size() &&
                      bytes <= file_.size() - offset,
                  where, "its zip directory of {} entries and {} bytes cannot be", count, bytes);
    read_directory(offset, bytes, count);
}

void StoredZip::read_directory(uint64_t offset, uint64_t bytes, uint64_t count) {
    const std::string where = "file " + file_.path(), directory = piece(file_, offset, bytes);
    size_t at = 0;
    for (uint64_t i = 0; i < count; ++i) {
        LEVIN_REQUIRE(directory.compare(std::min(at, directory.size()), 4, "PK\1\2") == 0, where,
                      "entry {} of its zip directory is damaged", i);
        const uint64_t method = number<uint16_t>(directory, at + 10, where);
        uint64_t stored = number<uint32_t>(directory, at + 20, where),
                 size = number<uint32_t>(directory, at + 24, where);
        const uint64_t name_bytes = number<uint16_t>(directory, at + 28, where),
                       extra_bytes = number<uint16_t>(directory, at + 30, where),
                       comment_bytes = number<uint16_t>(directory, at + 32, where);
        uint64_t local = number<uint32_t>(directory, at + 42, where);
        const size_t extra = at + kDirectoryRecord + name_bytes, next = extra + extra_bytes + comment_bytes;
        LEVIN_REQUIRE(next <= directory.size(), where, "its zip directory is cut short");
        const std::string name = directory.substr(at + kDirectoryRecord, name_bytes);
        for (size_t field = extra; field + 4 <= extra + extra_bytes;) {
            const uint64_t tag = number<uint16_t>(directory, field, where),
                           length = number<uint16_t>(directory, field + 2, where);
            if (tag == 1) {  // zip64: only the numbers that did not fit, in this order
                size_t value = field + 4;
                for (uint64_t* wide : {&size, &stored, &local})
                    if (*wide == 0xffffffffu) {
                        LEVIN_REQUIRE(value + 8 <= field + 4 + length, where,
                                      "'{}' has a damaged zip64 field", name);
                        *wide = number<uint64_t>(directory, value, where);
                        value += 8;
                    }
            }
            field += 4 + length;
        }
        LEVIN_REQUIRE(method == 0 && stored == size, where,
                      "'{}' is compressed; torch.save() stores without compression", name);
        LEVIN_REQUIRE(local <= file_.size() && kLocalRecord <= file_.size() - local, where,
                      "'{}' lies outside", name);
        const std::string header = piece(file_, local, kLocalRecord);
        LEVIN_REQUIRE(header.starts_with("PK\3\4"), where, "'{}' has no header where the directory says",
                      name);
        const uint64_t begin =
            local + kLocalRecord + number<uint16_t>(header, 26, where) + number<uint16_t>(header, 28, where);
        LEVIN_REQUIRE(begin <= file_.size() && size <= file_.size() - begin, where, "'{}' is truncated",
                      name);
        LEVIN_REQUIRE(entries_.emplace(name, Entry{begin, size}).second, where, "'{}' is in it twice", name);
        at = next;
    }
}

}  // namespace levin
