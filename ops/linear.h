// The linear layer: y = x * w^T.
//
// x [m, k], w [n, k] (Hugging Face layout [out, in]), y [m, n]; views may be strided, y must not overlap x or w.
// Nothing is rounded to a format: the caller stores, or reduces partial sums first.
//
// y(i, j) is a function of row i of x and row j of w alone: the same bits whatever m, n and the position of the rows,
// and whatever the number of threads. (The order of its sum depends on k and on the vector width of the build.)
#pragma once

#include "ops/cost.h"
#include "ops/matrix.h"

namespace shardproof::ops {

/// Throws ShapeError when the shapes do not fit. k = 0 gives zeros.
template <class T>
void linear(MatrixView<const T> x, MatrixView<const T> w, MatrixView<T> y);

/// 2 m n k flops; x, w and y once.
constexpr Cost linear_cost(Index m, Index n, Index k, int bytes_per_element) {
  const auto rows = static_cast<double>(m), out = static_cast<double>(n), in = static_cast<double>(k);
  return {2 * rows * out * in, (rows * in + out * in + rows * out) * bytes_per_element};
}

}  // namespace shardproof::ops
