// Root-mean-square norm (Zhang and Sennrich 2019, as in Llama and Mixtral), one row at a time:
//   y = stored((x * inv) * weight),  inv = 1 / sqrt(sum(x^2) / n + eps)
// Each step is one IEEE operation of T in this order. sum(x^2) is taken in a fixed number of interleaved partial sums,
// so it depends on the row alone; in `exact` it is exact, so its order does not matter.
#pragma once

#include <span>

#include "ops/cost.h"
#include "ops/format.h"
#include "ops/matrix.h"

namespace shardproof::ops {

/// x, y [rows, n], weight [n]; y may be x.
template <class T>
void rms_norm(MatrixView<const T> x, std::span<const T> weight, double eps, Format format, MatrixView<T> y);

/// 4 flops an element; x, y and the weight once.
constexpr Cost rms_norm_cost(Index rows, Index n, int bytes_per_element) {
  const double elements = static_cast<double>(rows) * static_cast<double>(n);
  return {4 * elements, (2 * elements + static_cast<double>(n)) * bytes_per_element};
}

}  // namespace shardproof::ops
