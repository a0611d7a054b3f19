#include "parallel/nccl/library.h"

#include <dlfcn.h>

namespace levin::nccl {

namespace {

const char* const kFile = "libnccl.so.2";

void* symbol(void* file, const char* name) {
    void* address = dlsym(file, name);
    LEVIN_REQUIRE(address, "nccl", "{} has no {}: it is older than 2.18; install a newer libnccl2", kFile,
                  name);
    return address;
}

Library load() {
    void* file = dlopen(kFile, RTLD_NOW | RTLD_LOCAL);
    if (!file) {
        const char* why = dlerror();
        fail(Fault::input, "nccl",
             "several ranks on GPUs need NCCL, and {} cannot be loaded ({}); install libnccl2, or add its "
             "folder to LD_LIBRARY_PATH",
             kFile, why ? why : "no reason given");
    }
    Library library;
#define LEVIN_NCCL_LOAD(function) \
    library.function = reinterpret_cast<decltype(library.function)>(symbol(file, #function));
    LEVIN_NCCL_FUNCTIONS(LEVIN_NCCL_LOAD)
#undef LEVIN_NCCL_LOAD
    return library;
}

}  // namespace

const Library& library() {
    static const Library loaded = load();
    return loaded;
}

std::string error_text(ncclResult_t code) {
    std::string text = library().ncclGetErrorString(code);
    const char* last = library().ncclGetLastError(nullptr);
    if (last && *last) text += std::string(": ") + last;
    while (!text.empty() && text.back() == '\n') text.pop_back();
    return text;
}

}  // namespace levin::nccl
