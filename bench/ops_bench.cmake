shardproof_benchmark(ops_bench
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/ops_bench.cpp ${CMAKE_CURRENT_LIST_DIR}/model_ops.cpp
  LIBRARIES shardproof::ops)
