// Any bytes as the pickle of a pytorch_model.bin: tensors, or Error(input), nothing else.
#include "checkpoint/pickle.h"
#include "kernels/base/error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size < 8) return 0;  // the driver's length field
    try {
        levin::parse_pickled_tensors(std::string_view(reinterpret_cast<const char*>(data) + 8, size - 8),
                                     "fuzz");
    } catch (const levin::Error& error) {
        if (error.fault() != levin::Fault::input) __builtin_trap();
    }
    return 0;
}

extern const char* const fuzz_seeds[];
extern const char* const fuzz_extension;
const char* const fuzz_seeds[] = {nullptr};
const char* const fuzz_extension = ".pkl";
