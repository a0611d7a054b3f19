#include "data/text_reader.h"

#include <sys/stat.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <vector>

#include "kernels/base/error.h"

namespace levin {

namespace {

constexpr size_t kInputSize = size_t{1} << 18;
// A frame may ask for a window as large as the text; 128 MiB is what `zstd -d` grants by itself, too.
constexpr int kLargestWindowLog = 27;

enum class Compression { none, gzip, zstd };

}  // namespace

struct TextReader::Members {
    std::string path;
    FILE* file = nullptr;
    uint64_t size = 0, position = 0;
    Compression compression = Compression::none;
    std::vector<unsigned char> input = std::vector<unsigned char>(kInputSize);
    size_t begin = 0, end = 0;  // what of `input` is not used yet
    bool file_ended = false, inside_frame = false;
    z_stream gzip{};
    ZSTD_DStream* zstd = nullptr;

    ~Members() {
        if (compression == Compression::gzip) inflateEnd(&gzip);
        ZSTD_freeDStream(zstd);
        if (file != nullptr) std::fclose(file);
    }

    void fill() {
        if (begin < end || file_ended) return;
        begin = 0;
        end = std::fread(input.data(), 1, input.size(), file);
        LEVIN_REQUIRE(!std::ferror(file), path, "cannot read the file: {}", std::strerror(errno));
        position += end;
        file_ended = end == 0;
    }

    // Each returns the number of bytes written to `to`, 0 at the end of the file.
    size_t read_plain(char* to, size_t room) {
        fill();
        const size_t n = std::min(room, end - begin);
        std::memcpy(to, input.data() + begin, n);
        begin += n;
        return n;
    }

    size_t read_gzip(char* to, size_t room) {
        gzip.next_out = reinterpret_cast<Bytef*>(to);
        gzip.avail_out = static_cast<uInt>(room);
        while (gzip.avail_out == room) {
            fill();
            if (begin == end) {
                LEVIN_REQUIRE(!inside_frame, path,
                              "ends in the middle of its gzip data; the file is truncated");
                return 0;
            }
            gzip.next_in = input.data() + begin;
            gzip.avail_in = static_cast<uInt>(end - begin);
            inside_frame = true;
            const int result = inflate(&gzip, Z_NO_FLUSH);
            begin = end - gzip.avail_in;
            if (result == Z_STREAM_END) {
                inside_frame = false;
                inflateReset(&gzip);
                continue;
            }
            LEVIN_REQUIRE(result == Z_OK || result == Z_BUF_ERROR, path,
                          "its gzip data is damaged near byte {}: {}", position - (end - begin),
                          gzip.msg != nullptr ? gzip.msg : "unknown error");
        }
        return room - gzip.avail_out;
    }

    size_t read_zstd(char* to, size_t room) {
        ZSTD_outBuffer out{to, room, 0};
        while (out.pos == 0) {
            fill();
            if (begin == end && !inside_frame) return 0;
            ZSTD_inBuffer in{input.data(), end, begin};
            const bool at_end = begin == end;
            const size_t result = ZSTD_decompressStream(zstd, &out, &in);
            LEVIN_REQUIRE(!ZSTD_isError(result), path, "its zstd data is damaged near byte {}: {}",
                          position - (end - begin), ZSTD_getErrorName(result));
            begin = in.pos;
            inside_frame = result != 0;
            LEVIN_REQUIRE(!(at_end && file_ended && inside_frame && out.pos == 0), path,
                          "ends in the middle of its zstd data; the file is truncated");
        }
        return out.pos;
    }
};

TextReader::TextReader(const std::string& path) : members_(std::make_unique<Members>()) {
    Members& m = *members_;
    m.path = path;
    m.file = std::fopen(path.c_str(), "rb");
    LEVIN_REQUIRE(m.file != nullptr, path, "cannot open the file: {}", std::strerror(errno));
    struct stat info {};
    LEVIN_REQUIRE(::fstat(fileno(m.file), &info) == 0, path, "cannot read the file's size: {}",
                  std::strerror(errno));
    LEVIN_REQUIRE(!S_ISDIR(info.st_mode), path, "is a folder; give the files in it");
    // The builder looks at every input before it starts, which a pipe would not survive.
    LEVIN_REQUIRE(S_ISREG(info.st_mode), path, "is no regular file; save the text to a file first");
    m.size = static_cast<uint64_t>(info.st_size);
    m.fill();
    const unsigned char* data = m.input.data();
    if (m.end >= 2 && data[0] == 0x1F && data[1] == 0x8B) {
        // 15 + 16: the largest window, with a gzip header and its checksum.
        LEVIN_CHECK(inflateInit2(&m.gzip, 15 + 16) == Z_OK, path, "cannot start zlib");
        m.compression = Compression::gzip;
    } else if (m.end >= 4 && data[0] == 0x28 && data[1] == 0xB5 && data[2] == 0x2F && data[3] == 0xFD) {
        m.zstd = ZSTD_createDStream();
        LEVIN_CHECK(m.zstd != nullptr, path, "cannot start zstd");
        ZSTD_DCtx_setParameter(m.zstd, ZSTD_d_windowLogMax, kLargestWindowLog);
        m.compression = Compression::zstd;
    }
}

TextReader::~TextReader() = default;

bool TextReader::read(size_t size, std::string& out) {
    Members& m = *members_;
    const size_t before = out.size();
    out.resize(before + size);
    size_t done = 0;
    while (done < size) {
        char* to = out.data() + before + done;
        const size_t room = size - done;
        const size_t n = m.compression == Compression::none   ? m.read_plain(to, room)
                         : m.compression == Compression::gzip ? m.read_gzip(to, room)
                                                              : m.read_zstd(to, room);
        if (n == 0) break;
        done += n;
    }
    out.resize(before + done);
    return done > 0;
}

const std::string& TextReader::path() const { return members_->path; }
uint64_t TextReader::position() const { return members_->position; }
uint64_t TextReader::size() const { return members_->size; }

}  // namespace levin
