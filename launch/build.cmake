# Third-party libraries and the three functions every CMakeLists.txt here uses.

find_package(OpenMP REQUIRED COMPONENTS CXX)
find_package(Threads REQUIRED)
find_package(fmt REQUIRED)
find_package(nlohmann_json REQUIRED)
include(launch/protobuf.cmake)
if(LEVIN_TESTS)
  find_package(GTest REQUIRED)
endif()

# One interface target that carries what every file of levin is compiled with.
add_library(levin_options INTERFACE)
target_include_directories(levin_options INTERFACE ${PROJECT_SOURCE_DIR} ${PROJECT_BINARY_DIR}/generated)
target_compile_options(levin_options INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Werror -march=${LEVIN_ARCH} -ffp-contract=fast>)
# These depend on what the optimiser inlined, and g++ 12 and 13 raise them wrongly inside <string> and nlohmann-json.
if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
  target_compile_options(levin_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wno-restrict -Wno-maybe-uninitialized
    -Wno-error=array-bounds -Wno-error=stringop-overflow -Wno-error=stringop-overread>)
endif()
if(LEVIN_SANITIZE)
  target_compile_options(levin_options INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${LEVIN_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer>)
  target_link_options(levin_options INTERFACE -fsanitize=${LEVIN_SANITIZE})
endif()
target_link_libraries(levin_options INTERFACE OpenMP::OpenMP_CXX Threads::Threads fmt::fmt)

# levin_room(NAME SOURCES a.cpp .. LINKS lib ..): the static library levin_NAME.
function(levin_room name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LINKS" ${ARGN})
  add_library(levin_${name} STATIC ${ARG_SOURCES})
  target_link_libraries(levin_${name} PUBLIC levin_options ${ARG_LINKS})
endfunction()

# levin_test(NAME SOURCES a.cpp .. LINKS lib .. [LABELS gpu] [RANKS n] [STARTS_RANKS]): one GoogleTest program, one ctest
# entry. RANKS: it runs on every rank of a job; STARTS_RANKS: it starts jobs itself.
function(levin_test name)
  cmake_parse_arguments(ARG "STARTS_RANKS" "RANKS" "SOURCES;LINKS;LABELS" ${ARGN})
  add_executable(${name}_test ${ARG_SOURCES})
  target_link_libraries(${name}_test PRIVATE ${ARG_LINKS} GTest::gtest GTest::gtest_main)
  set(command $<TARGET_FILE:${name}_test>)
  set(environment "LEVIN_SOURCE_DIR=${PROJECT_SOURCE_DIR}")
  if(ARG_RANKS)
    set(command ${MPIEXEC_EXECUTABLE} --allow-run-as-root --oversubscribe --bind-to none -n ${ARG_RANKS} ${command})
    list(APPEND environment OMP_NUM_THREADS=1)  # ranks that spin for each other's cores are slow and prove nothing
  endif()
  add_test(NAME ${name} COMMAND ${command})
  set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT 900 ENVIRONMENT "${environment}")
  if(LEVIN_SANITIZE MATCHES address AND (ARG_RANKS OR ARG_STARTS_RANKS))
    # Parts of Open MPI that are unloaded at the end leak: only the whole stack says whose they were (lsan.supp).
    set_tests_properties(${name} PROPERTIES
      ENVIRONMENT_MODIFICATION "ASAN_OPTIONS=string_append::fast_unwind_on_malloc=0")
  endif()
endfunction()
