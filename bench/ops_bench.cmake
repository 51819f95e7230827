shardproof_benchmark(ops_bench
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/ops_bench.cpp
  LIBRARIES shardproof::ops)
