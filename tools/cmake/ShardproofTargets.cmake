# Compile options and helpers shared by every target of the project.

include(ShardproofArch)
include(ShardproofEmbed)

# Settings of our own code only: consumers of an installed library get the C++ standard and nothing else.
add_library(shardproof_options INTERFACE)
target_compile_options(shardproof_options INTERFACE
  -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wsign-conversion -Wnon-virtual-dtor -Woverloaded-virtual
  # Designated initialisers leave the rest at its default on purpose.
  -Wno-missing-field-initializers
  # A fused multiply-add where the compiler sees fit would make a value depend on how its loop was vectorised;
  # kernels that want one ask for it by name.
  -ffp-contract=off
  # Source locations in messages are paths inside the project, the same on every machine.
  -ffile-prefix-map=${PROJECT_SOURCE_DIR}/=
  ${SHARDPROOF_ARCH_FLAGS})
if(SHARDPROOF_WERROR)
  target_compile_options(shardproof_options INTERFACE -Werror)
endif()
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # GCC 12 reports false positives of these in inlined library code.
  target_compile_options(shardproof_options INTERFACE -Wno-maybe-uninitialized -Wno-array-bounds -Wno-stringop-overflow
                                                      -Wno-stringop-overread -Wno-dangling-pointer -Wno-restrict)
endif()
if(CMAKE_UNITY_BUILD AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # GCC takes a source that another one includes for a header, where an unnamed namespace would be a mistake.
  target_compile_options(shardproof_options INTERFACE -Wno-subobject-linkage)
endif()
if(SHARDPROOF_SANITIZE)
  target_compile_options(shardproof_options INTERFACE -fsanitize=${SHARDPROOF_SANITIZE} -fno-omit-frame-pointer
                                                      -fno-sanitize-recover=all)
  target_link_options(shardproof_options INTERFACE -fsanitize=${SHARDPROOF_SANITIZE})
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # GCC 12 takes the undefined operands of its own AVX-512 header for a use of them at this optimisation.
    target_compile_options(shardproof_options INTERFACE -Wno-uninitialized)
  endif()
  if(SHARDPROOF_SANITIZE MATCHES "thread" AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # GCC warns that the fences inside oneTBB's headers are not modelled.
    target_compile_options(shardproof_options INTERFACE -Wno-tsan)
  endif()
endif()
if(SHARDPROOF_SANITIZE MATCHES "undefined" AND CMAKE_CXX_COMPILER_ID MATCHES "Clang")
  # clang 14 cannot assemble coroutines with the check of indirect calls ("a difference across sections").
  target_compile_options(shardproof_options INTERFACE -fno-sanitize=function)
endif()
if(SHARDPROOF_FUZZ)
  target_compile_options(shardproof_options INTERFACE -fsanitize=fuzzer-no-link)
endif()

# shardproof_library(<folder>): the target shardproof_<folder>, its alias shardproof::<folder>.
# Sources are listed by the folders with target_sources.
function(shardproof_library name)
  add_library(shardproof_${name} STATIC)
  add_library(shardproof::${name} ALIAS shardproof_${name})
  set_target_properties(shardproof_${name} PROPERTIES EXPORT_NAME ${name} POSITION_INDEPENDENT_CODE ON
                                                 LINKER_LANGUAGE CXX)
  target_compile_features(shardproof_${name} PUBLIC cxx_std_20)
  target_include_directories(shardproof_${name} PUBLIC
    $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>
    $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}/shardproof>)
  target_link_libraries(shardproof_${name} PRIVATE $<BUILD_INTERFACE:shardproof_options>)
  set_property(GLOBAL APPEND PROPERTY SHARDPROOF_LIBRARIES shardproof_${name})
endfunction()

# shardproof_compile_by_room(<target>): in a unity build, the sources of each folder just below the target's are one
# translation unit, and those beside its CMakeLists.txt are one. Called when every source is listed.
function(shardproof_compile_by_room target)
  get_target_property(sources ${target} SOURCES)
  foreach(source IN LISTS sources)
    cmake_path(ABSOLUTE_PATH source NORMALIZE OUTPUT_VARIABLE path)
    cmake_path(RELATIVE_PATH path BASE_DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR})
    cmake_path(GET path PARENT_PATH folder)
    string(REGEX REPLACE "/.*" "" room "${folder}")
    set_source_files_properties(${source} PROPERTIES UNITY_GROUP "room_${room}")
  endforeach()
  set_target_properties(${target} PROPERTIES UNITY_BUILD_MODE GROUP)
endfunction()

# shardproof_test(<name> SOURCES ... LIBRARIES ... [LABELS ...]): a GoogleTest program, one ctest entry per test.
# The label `nightly` keeps a program out of the default run.
function(shardproof_test name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LIBRARIES;LABELS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE shardproof_options ${ARG_LIBRARIES} GTest::gtest GTest::gmock GTest::gtest_main)
  target_compile_features(${name} PRIVATE cxx_std_20)
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR})
  target_compile_definitions(${name} PRIVATE SHARDPROOF_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  gtest_discover_tests(${name} DISCOVERY_TIMEOUT 60 PROPERTIES LABELS "${ARG_LABELS}")
endfunction()

# shardproof_benchmark(<name> SOURCES ... LIBRARIES ...): a Google Benchmark program.
function(shardproof_benchmark name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LIBRARIES" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE shardproof_options ${ARG_LIBRARIES} benchmark::benchmark)
  target_compile_features(${name} PRIVATE cxx_std_20)
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR})
endfunction()

# shardproof_fuzzer(<name> SOURCES ... LIBRARIES ... [CORPUS <folder>...] [OPTIONS ...]): a libFuzzer program, only with SHARDPROOF_FUZZ;
# its ctest entry fuzz.<name> starts from the files of CORPUS and runs for a minute.
function(shardproof_fuzzer name)
  if(NOT SHARDPROOF_FUZZ)
    return()
  endif()
  cmake_parse_arguments(ARG "" "" "SOURCES;LIBRARIES;CORPUS;OPTIONS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE shardproof_options ${ARG_LIBRARIES})
  target_link_options(${name} PRIVATE -fsanitize=fuzzer)
  target_compile_features(${name} PRIVATE cxx_std_20)
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR})
  if(NOT TARGET fuzzers)
    add_custom_target(fuzzers)
  endif()
  add_dependencies(fuzzers ${name})
  # What a run finds is added to the first folder; the others are only read.
  set(found ${CMAKE_CURRENT_BINARY_DIR}/${name}_corpus)
  file(MAKE_DIRECTORY ${found})
  add_test(NAME fuzz.${name} COMMAND ${name} -max_total_time=60 -max_len=20000 -timeout=10 -rss_limit_mb=2048
                                    -dict=${PROJECT_SOURCE_DIR}/tests/fuzz/json.dict ${ARG_OPTIONS} ${found} ${ARG_CORPUS})
  set_tests_properties(fuzz.${name} PROPERTIES LABELS "nightly;fuzz" TIMEOUT 300)
endfunction()
