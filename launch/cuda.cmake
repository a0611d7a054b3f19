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

set(why_not "no toolkit found")
if(CMAKE_CUDA_COMPILER)
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --version OUTPUT_VARIABLE nvcc_says)
  string(REGEX MATCH "release ([0-9.]+)" unused "${nvcc_says}")
  if(CMAKE_MATCH_1 VERSION_LESS 12.0)  # the first with C++20 and sm_90a
    set(why_not "${CMAKE_CUDA_COMPILER} is ${CMAKE_MATCH_1}, too old: 12.0 or newer is needed")
  else()
    set(why_not "")
  endif()
endif()

if(NOT why_not)
  set(CMAKE_CUDA_ARCHITECTURES ${LEVIN_CUDA_ARCH})
  enable_language(CUDA)  # -std=c++20 is set in kernels/cuda: CMake 3.25 does not know it for nvcc
  set(LEVIN_CUDA_STATUS "${CMAKE_CUDA_COMPILER_VERSION} for ${LEVIN_CUDA_ARCH}")
elseif(LEVIN_CUDA_REQUIRED)
  message(FATAL_ERROR "CUDA: ${why_not} (nvcc is looked for on PATH and in CUDACXX, CUDA_HOME and /usr/local/cuda). "
    "Install a toolkit of 12.0 or newer, or build without: launch/build --cuda off")
else()
  set(LEVIN_CUDA OFF)
  set(LEVIN_CUDA_STATUS "${why_not}")
endif()
