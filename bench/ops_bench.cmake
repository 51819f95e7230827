shardproof_benchmark(ops_bench
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/ops_bench.cpp ${CMAKE_CURRENT_LIST_DIR}/ops_machine.cpp
  LIBRARIES shardproof::ops)
set_source_files_properties(${CMAKE_CURRENT_LIST_DIR}/ops_machine.cpp PROPERTIES COMPILE_OPTIONS -ffp-contract=fast)
