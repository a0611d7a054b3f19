# Looks for NCCL's header; sets LEVIN_NCCL and LEVIN_NCCL_STATUS. The library itself is loaded when ranks ask for GPUs
# (parallel/nccl/library.h), so that one program runs on machines with and without it.

set(LEVIN_NCCL OFF)
if(NOT LEVIN_CUDA)
  set(LEVIN_NCCL_STATUS "off")
  return()
endif()
find_path(LEVIN_NCCL_INCLUDE nccl.h HINTS ENV NCCL_HOME ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda
  PATH_SUFFIXES include)
if(LEVIN_NCCL_INCLUDE)
  file(STRINGS ${LEVIN_NCCL_INCLUDE}/nccl.h numbers REGEX "#define NCCL_(MAJOR|MINOR|PATCH)")
  string(REGEX MATCHALL "[0-9]+" numbers "${numbers}")
  list(JOIN numbers "." LEVIN_NCCL_STATUS)
  if(LEVIN_NCCL_STATUS VERSION_LESS 2.18)  # the first that splits communicators
    set(LEVIN_NCCL_STATUS "${LEVIN_NCCL_STATUS} is too old, 2.18 is needed: one GPU only")
  else()
    set(LEVIN_NCCL ON)
  endif()
else()
  set(LEVIN_NCCL_STATUS "no nccl.h found: one GPU only")
endif()
