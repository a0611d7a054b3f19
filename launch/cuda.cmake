# Enables the CUDA language where the build wants it and a toolkit that works is found; sets LEVIN_CUDA_STATUS.

if(NOT LEVIN_CUDA)
  set(LEVIN_CUDA_STATUS "off")
  return()
endif()

# The toolkit's installer does not put nvcc on PATH; CMake looks only there and in CUDACXX.
if(NOT DEFINED ENV{CUDACXX})
  find_program(LEVIN_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin)
  if(LEVIN_NVCC)
    set(ENV{CUDACXX} ${LEVIN_NVCC})
  endif()
endif()
include(CheckLanguage)
check_language(CUDA)  # false, with no error, also where nvcc does not get on with the C++ compiler

if(CMAKE_CUDA_COMPILER)
  set(CMAKE_CUDA_ARCHITECTURES ${LEVIN_CUDA_ARCH})
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  enable_language(CUDA)
  set(LEVIN_CUDA_STATUS "${CMAKE_CUDA_COMPILER_VERSION} for ${LEVIN_CUDA_ARCH}")
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.0)
    message(FATAL_ERROR "levin needs a CUDA toolkit of 12.0 or newer (C++20, sm_90a); ${CMAKE_CUDA_COMPILER} is "
      "${CMAKE_CUDA_COMPILER_VERSION}. Install a newer one, or build without: launch/build --cuda off")
  endif()
elseif(LEVIN_CUDA_REQUIRED)
  message(FATAL_ERROR "no CUDA toolkit that works was found (nvcc on PATH, CUDACXX, CUDA_HOME or /usr/local/cuda). "
    "Install one, or build without: launch/build --cuda off")
else()
  set(LEVIN_CUDA_STATUS "no toolkit found")
endif()
