# Install rules: libraries, headers under include/shardproof, the command (whose `ops` and `collectives` are the
# benchmarks) and what compares its results, the plans, and the package that find_package(shardproof) reads.

include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/shardproof)
get_property(libraries GLOBAL PROPERTY SHARDPROOF_LIBRARIES)

install(TARGETS ${libraries} EXPORT shardproof-targets)
install(EXPORT shardproof-targets NAMESPACE shardproof:: DESTINATION ${package_dir})
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/shardproof-config.cmake.in
  ${PROJECT_BINARY_DIR}/shardproof-config.cmake INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/shardproof-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/shardproof-config.cmake ${PROJECT_BINARY_DIR}/shardproof-config-version.cmake
        DESTINATION ${package_dir})
foreach(folder ops collectives emu)
  install(DIRECTORY ${PROJECT_SOURCE_DIR}/${folder} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/shardproof
          FILES_MATCHING PATTERN "*.h" PATTERN "internal" EXCLUDE)
endforeach()
install(DIRECTORY ${PROJECT_SOURCE_DIR}/plans DESTINATION ${CMAKE_INSTALL_DATADIR}/shardproof)
if(TARGET shardproof)
  install(TARGETS shardproof)
  install(PROGRAMS ${PROJECT_SOURCE_DIR}/bench/compare.py DESTINATION ${CMAKE_INSTALL_BINDIR}
          RENAME shardproof-bench-compare)
endif()
