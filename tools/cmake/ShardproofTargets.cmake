# Compile options and helpers shared by every target of the project.

include(ShardproofArch)

# Settings of our own code only: consumers of an installed library get the C++ standard and nothing else.
add_library(shardproof_options INTERFACE)
target_compile_options(shardproof_options INTERFACE
  -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wsign-conversion -Wnon-virtual-dtor -Woverloaded-virtual -Werror
  # A fused multiply-add where the compiler sees fit would make a value depend on how its loop was vectorised;
  # kernels that want one ask for it by name.
  -ffp-contract=off
  ${SHARDPROOF_ARCH_FLAGS})
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # GCC 12 reports false positives of these in inlined library code.
  target_compile_options(shardproof_options INTERFACE -Wno-maybe-uninitialized -Wno-array-bounds -Wno-stringop-overflow
                                                      -Wno-stringop-overread -Wno-dangling-pointer)
endif()
if(SHARDPROOF_SANITIZE)
  target_compile_options(shardproof_options INTERFACE -fsanitize=${SHARDPROOF_SANITIZE} -fno-omit-frame-pointer
                                                      -fno-sanitize-recover=all)
  target_link_options(shardproof_options INTERFACE -fsanitize=${SHARDPROOF_SANITIZE})
endif()

# shardproof_library(<folder>): the target shardproof_<folder>, its alias shardproof::<folder>.
# Sources are listed by the folders with target_sources.
function(shardproof_library name)
  add_library(shardproof_${name} STATIC)
  add_library(shardproof::${name} ALIAS shardproof_${name})
  set_target_properties(shardproof_${name} PROPERTIES EXPORT_NAME ${name} POSITION_INDEPENDENT_CODE ON)
  target_compile_features(shardproof_${name} PUBLIC cxx_std_20)
  target_include_directories(shardproof_${name} PUBLIC
    $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>
    $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}/shardproof>)
  target_link_libraries(shardproof_${name} PRIVATE $<BUILD_INTERFACE:shardproof_options>)
  set_property(GLOBAL APPEND PROPERTY SHARDPROOF_LIBRARIES shardproof_${name})
endfunction()

# shardproof_test(<name> SOURCES ... LIBRARIES ... [LABELS ...]): a GoogleTest program, one ctest entry per test.
function(shardproof_test name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LIBRARIES;LABELS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE shardproof_options ${ARG_LIBRARIES} GTest::gtest GTest::gmock GTest::gtest_main)
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR})
  target_compile_definitions(${name} PRIVATE SHARDPROOF_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  gtest_discover_tests(${name} DISCOVERY_TIMEOUT 60 PROPERTIES LABELS "${ARG_LABELS}")
endfunction()

# shardproof_benchmark(<name> SOURCES ... LIBRARIES ...): a Google Benchmark program.
function(shardproof_benchmark name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LIBRARIES" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE shardproof_options ${ARG_LIBRARIES} benchmark::benchmark)
endfunction()

function(shardproof_install)
  include(CMakePackageConfigHelpers)
  get_property(libraries GLOBAL PROPERTY SHARDPROOF_LIBRARIES)
  install(TARGETS ${libraries} EXPORT shardproof-targets)
  install(EXPORT shardproof-targets NAMESPACE shardproof:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/shardproof)
  configure_package_config_file(${PROJECT_SOURCE_DIR}/tools/cmake/shardproof-config.cmake.in
    ${PROJECT_BINARY_DIR}/shardproof-config.cmake INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/shardproof)
  write_basic_package_version_file(${PROJECT_BINARY_DIR}/shardproof-config-version.cmake COMPATIBILITY SameMinorVersion)
  install(FILES ${PROJECT_BINARY_DIR}/shardproof-config.cmake ${PROJECT_BINARY_DIR}/shardproof-config-version.cmake
          DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/shardproof)
  foreach(folder ops collectives emu)
    install(DIRECTORY ${PROJECT_SOURCE_DIR}/${folder} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/shardproof
            FILES_MATCHING PATTERN "*.h" PATTERN "internal" EXCLUDE)
  endforeach()
  if(TARGET shardproof)
    install(TARGETS shardproof)
    install(DIRECTORY ${PROJECT_SOURCE_DIR}/plans DESTINATION ${CMAKE_INSTALL_DATADIR}/shardproof)
  endif()
endfunction()
