# Looks for cuDNN's headers and those of its C++ front end (package nvidia-cudnn-frontend, headers only); sets
# LEVIN_CUDNN, LEVIN_CUDNN_INCLUDES and LEVIN_CUDNN_STATUS. The library itself is opened when attention first needs it.

set(LEVIN_CUDNN OFF)
if(NOT LEVIN_CUDA)
  set(LEVIN_CUDNN_STATUS "off")
  return()
endif()
find_path(LEVIN_CUDNN_INCLUDE cudnn_backend.h HINTS ENV CUDNN_HOME ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda
  PATH_SUFFIXES include include/${CMAKE_LIBRARY_ARCHITECTURE})
# launch/build puts the front end into build/cudnn-frontend.
find_path(LEVIN_CUDNN_FRONTEND_INCLUDE cudnn_frontend.h HINTS ENV CUDNN_FRONTEND_HOME
  PATHS ${PROJECT_SOURCE_DIR}/build/cudnn-frontend /usr/local/cuda PATH_SUFFIXES include)
if(NOT LEVIN_CUDNN_INCLUDE)
  set(LEVIN_CUDNN_STATUS "no cudnn_backend.h found: softmax attention by plain kernels")
elseif(NOT LEVIN_CUDNN_FRONTEND_INCLUDE)
  set(LEVIN_CUDNN_STATUS "no cudnn_frontend.h found: softmax attention by plain kernels")
else()
  set(LEVIN_CUDNN ON)
  set(LEVIN_CUDNN_INCLUDES ${LEVIN_CUDNN_FRONTEND_INCLUDE} ${LEVIN_CUDNN_INCLUDE})
  set(LEVIN_CUDNN_STATUS "headers found")
endif()
