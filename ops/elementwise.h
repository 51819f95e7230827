// Elementwise sums: the residual connection.
#pragma once

#include "ops/cost.h"
#include "ops/format.h"
#include "ops/matrix.h"

namespace shardproof::ops {

/// out = stored(x + y); all [rows, cols]; out may be x or y.
template <class T>
void add(MatrixView<const T> x, MatrixView<const T> y, Format format, MatrixView<T> out);

constexpr Cost add_cost(Index rows, Index cols, int bytes_per_element) {
  const double elements = static_cast<double>(rows) * static_cast<double>(cols);
  return {elements, 3 * elements * bytes_per_element};
}

}  // namespace shardproof::ops
