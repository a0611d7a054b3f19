# Protocol Buffers, kept apart from the older copy of it inside libsentencepiece.so.
#
# Debian's and Ubuntu's libsentencepiece.so contains a Protocol Buffers of its own and exports all of its symbols. With
# libprotobuf.so in the same program, whichever of the two is linked first serves both, and the first SentencePiece
# model (or the first manifest) aborts the program. So levin links the archive, whole and ahead of everything, and
# exports none of its symbols: each side then sees its own copy alone, in any order of linking.

set(Protobuf_USE_STATIC_LIBS ON)
find_package(Protobuf REQUIRED)
find_package(ZLIB REQUIRED)  # used by one member of the archive

set(script ${PROJECT_BINARY_DIR}/hide_protobuf.map)
file(CONFIGURE OUTPUT ${script} CONTENT "{ local: *6google8protobuf*; };\n")
get_target_property(archive protobuf::libprotobuf IMPORTED_LOCATION)
if(NOT archive)
  get_target_property(archive protobuf::libprotobuf IMPORTED_LOCATION_RELEASE)
endif()
foreach(target protobuf::libprotobuf protobuf::libprotobuf-lite)
  # The lite library is a part of the other; one file for both leaves nothing to choose.
  set_target_properties(${target} PROPERTIES IMPORTED_LOCATION ${archive} IMPORTED_LOCATION_RELEASE ${archive})
  target_link_options(${target} INTERFACE
    "LINKER:--whole-archive,${archive},--no-whole-archive" "LINKER:--version-script=${script}")
  target_link_libraries(${target} INTERFACE ZLIB::ZLIB)
endforeach()
