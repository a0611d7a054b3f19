// The one way MPI is called: LEVIN_MPI(MPI_Isend(..)) throws Error(communication) with MPI's own words.
#pragma once

#ifndef OMPI_SKIP_MPICXX
#define OMPI_SKIP_MPICXX  // the C++ bindings MPI dropped in 2012
#endif
#include <mpi.h>

#include <string>

#include "kernels/base/error.h"

namespace levin::mpi {

// "MPI_ERR_TRUNCATE: message truncated"
inline std::string error_text(int code) {
    char text[MPI_MAX_ERROR_STRING];
    int length = 0;
    if (MPI_Error_string(code, text, &length) != MPI_SUCCESS) return "error " + std::to_string(code);
    return {text, static_cast<size_t>(length)};
}

// Rank in the job, for messages; -1 outside MPI.
inline int world_rank() {
    int rank = -1;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    return rank;
}

}  // namespace levin::mpi

#define LEVIN_MPI(call)                                                                                 \
    do {                                                                                                \
        const int levin_mpi_code = (call);                                                              \
        if (levin_mpi_code != MPI_SUCCESS)                                                              \
            ::levin::fail(::levin::Fault::communication, "mpi",                                         \
                          "rank {}: {} failed: {}; look for the first rank that reported an error",     \
                          ::levin::mpi::world_rank(), #call, ::levin::mpi::error_text(levin_mpi_code)); \
    } while (0)
