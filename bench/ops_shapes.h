// Shapes that the five plans make at full width, and their shards.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/matrix.h"

namespace shardproof::bench {

struct GemmShape {
  std::int64_t n, k;
};

/// Weights [n, k] of one rank: attention and expert projections of hidden 512 (intermediate size 1024), hidden 1024
/// (2048 and 4096) and hidden 8192 (18432, a tensor-parallel quarter), whole and halved.
inline const std::vector<GemmShape> kGemmShapes{{512, 512},   {512, 1024},  {1024, 512},  {1024, 1024}, {2048, 1024},
                                                {1024, 2048}, {4096, 1024}, {1024, 4096}, {2048, 8192}, {4608, 8192}};

/// Token rows: a token to a long prefill. The largest weights stop earlier, so that a run stays short.
inline const std::vector<std::int64_t> kGemmRows{1, 2, 4, 8, 16, 32, 64, 256, 1024, 4096};
inline bool runs(std::int64_t m, const GemmShape& shape) {
  return m * shape.n * shape.k <= std::int64_t{5} << 30;
}

struct ExpertShape {
  std::int64_t hidden, width;
};
inline const std::vector<ExpertShape> kExpertShapes{{512, 1024}, {512, 512}, {1024, 2048}, {1024, 4096}, {8192, 4608}};
inline const std::vector<std::int64_t> kExpertTokens{1, 4, 16, 64, 256, 1024};

/// Values in [-1, 1) that differ from one another, the same on every run.
template <class T>
ops::Matrix<T> filled(std::int64_t rows, std::int64_t cols, std::uint32_t seed) {
  ops::Matrix<T> result(rows, cols);
  std::uint32_t state = seed * 2654435761U + 1;
  for (T& value : result.span()) {
    state = state * 1664525U + 1013904223U;
    value = static_cast<T>(static_cast<double>(state >> 8) / 8388608.0 - 1);
  }
  return result;
}

}  // namespace shardproof::bench
