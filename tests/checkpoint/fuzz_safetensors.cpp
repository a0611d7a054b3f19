// Any bytes as a safetensors file: the header is parsed or refused with Error(input), nothing else.
#include <cstring>

#include "checkpoint/safetensors.h"
#include "kernels/base/error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size < 8) return 0;
    uint64_t length = 0;
    std::memcpy(&length, data, 8);
    if (length > size - 8) length = size - 8;  // the reader refuses this before it parses
    try {
        const auto header = levin::parse_safetensors_header(
            std::string_view(reinterpret_cast<const char*>(data) + 8, length), size - 8 - length, "fuzz");
        uint64_t at = 0;
        for (const auto& entry : header.entries) {
            if (entry.begin != at || entry.end < entry.begin || entry.end > size) __builtin_trap();
            at = entry.end;
        }
    } catch (const levin::Error& error) {
        if (error.fault() != levin::Fault::input) __builtin_trap();
    }
    return 0;
}

extern const char* const fuzz_seeds[];
extern const char* const fuzz_extension;
const char* const fuzz_seeds[] = {
    R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]}})",
    R"({"t":{"dtype":"I64","shape":[],"data_offsets":[0,8]}})", R"({})", nullptr};
const char* const fuzz_extension = ".safetensors";
