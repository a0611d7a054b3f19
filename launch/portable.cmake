# The portable build: archives are linked where Debian has them, the other libraries travel in lib/ beside the program.
# Left to the machine that runs it: the C and C++ runtimes, MPI (it must be the one that starts the ranks) and CUDA.

# OpenMP stays shared: libdnnl.so brings libgomp.so.1, and a second runtime inside the program would mix with it.
find_package(OpenMP REQUIRED COMPONENTS CXX)
set(CMAKE_FIND_LIBRARY_SUFFIXES .a .so)

# Its CMake file names the shared library alone, though the archive lies beside it.
find_package(yaml-cpp REQUIRED)
find_library(YAML_CPP_ARCHIVE libyaml-cpp.a REQUIRED)
foreach(target yaml-cpp yaml-cpp::yaml-cpp)
  if(TARGET ${target})
    set_target_properties(${target} PROPERTIES
      IMPORTED_LOCATION_NONE ${YAML_CPP_ARCHIVE} IMPORTED_LOCATION_RELEASE ${YAML_CPP_ARCHIVE} IMPORTED_GLOBAL ON)
  endif()
endforeach()

# levin_bundle(PROGRAM): the target bundle, which makes the folder bundle/ that can be carried to another machine.
function(levin_bundle program)
  # RPATH, not RUNPATH: only the former is also asked for what the bundled libraries need themselves.
  target_link_options(${program} PRIVATE -Wl,--disable-new-dtags)
  set_target_properties(${program} PROPERTIES
    BUILD_RPATH "\$ORIGIN/lib:/usr/local/cuda/lib64" BUILD_RPATH_USE_ORIGIN ON)
  add_custom_target(bundle
    COMMAND ${PROJECT_SOURCE_DIR}/launch/bundle $<TARGET_FILE:${program}> ${PROJECT_BINARY_DIR}/bundle
    DEPENDS ${program}
    COMMENT "Gathering ${PROJECT_BINARY_DIR}/bundle"
    VERBATIM)
endfunction()
