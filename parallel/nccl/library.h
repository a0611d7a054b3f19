// NCCL, loaded when first asked for: one program runs on machines with and without it. The header is of the
// build machine; only functions whose signatures have not changed since 2.18 are used. The config struct says
// its own size: an older library reads the part it knows, a newer one takes its defaults for the rest.
//
// LEVIN_NCCL(ncclAllReduce, buffer, ..) calls a function and throws Error(communication) with NCCL's words.
#pragma once

#include <nccl.h>

#include <string>

#include "kernels/base/error.h"

#define LEVIN_NCCL_FUNCTIONS(X) \
    X(ncclGetVersion)           \
    X(ncclGetUniqueId)          \
    X(ncclCommInitRank)         \
    X(ncclCommSplit)            \
    X(ncclCommDestroy)          \
    X(ncclCommAbort)            \
    X(ncclCommGetAsyncError)    \
    X(ncclGetErrorString)       \
    X(ncclGetLastError)         \
    X(ncclAllReduce)            \
    X(ncclReduceScatter)        \
    X(ncclAllGather)            \
    X(ncclBroadcast)            \
    X(ncclSend)                 \
    X(ncclRecv)                 \
    X(ncclGroupStart)           \
    X(ncclGroupEnd)

namespace levin::nccl {

struct Library {
#define LEVIN_NCCL_MEMBER(function) decltype(&::function) function;
    LEVIN_NCCL_FUNCTIONS(LEVIN_NCCL_MEMBER)
#undef LEVIN_NCCL_MEMBER
};

// Throws Error(input) that says what to install when libnccl.so.2 is not there or too old.
const Library& library();

// "unhandled cuda error: <the last words of NCCL's log>"
std::string error_text(ncclResult_t code);

}  // namespace levin::nccl

#define LEVIN_NCCL(function, ...)                                                                  \
    do {                                                                                           \
        const ncclResult_t levin_nccl_code = ::levin::nccl::library().function(__VA_ARGS__);       \
        if (levin_nccl_code != ncclSuccess)                                                        \
            ::levin::fail(::levin::Fault::communication, "nccl",                                   \
                          "{} failed: {}; look for the first rank that reported an error, and at " \
                          "NCCL_DEBUG=INFO",                                                       \
                          #function, ::levin::nccl::error_text(levin_nccl_code));                  \
    } while (0)
