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

/// Layer norm (Ba et al. 2016): y = stored(d * inv * weight + bias), d = x - mean, inv = 1 / sqrt(sum(d^2) / n + eps).
/// Each step is one operation of T in this order, both sums as above. In `exact` the mean is stored before it is taken
/// off, so that sum(d^2) is exact. Shapes as above, bias [n].
template <class T>
void layer_norm(MatrixView<const T> x, std::span<const T> weight, std::span<const T> bias, double eps, Format format,
                MatrixView<T> y);

/// 7 flops an element; x, y, the weight and the bias once.
constexpr Cost layer_norm_cost(Index rows, Index n, int bytes_per_element) {
  const double elements = static_cast<double>(rows) * static_cast<double>(n);
  return {7 * elements, (2 * elements + 2 * static_cast<double>(n)) * bytes_per_element};
}

/// squares(i, column) = sum(x(i, j)^2) of the row, in the order of rms_norm(). Not rounded.
template <class T>
void sum_squares(MatrixView<const T> x, MatrixView<T> squares, Index column);

/// The norm of rows of `width` elements of which x has some: y as above for these, with n = width and sum(x^2) the
/// whole row's, squares(i, column). x, y [rows, part], weight [part]; y may be x.
template <class T>
void rms_norm_part(MatrixView<const T> x, MatrixView<const T> squares, Index column, Index width,
                   std::span<const T> weight, double eps, Format format, MatrixView<T> y);

/// A product and a sum an element; x once.
constexpr Cost sum_squares_cost(Index rows, Index n, int bytes_per_element) {
  const double elements = static_cast<double>(rows) * static_cast<double>(n);
  return {2 * elements, elements * bytes_per_element};
}

/// 4 flops an element; x, y and the weight once.
constexpr Cost rms_norm_cost(Index rows, Index n, int bytes_per_element) {
  const double elements = static_cast<double>(rows) * static_cast<double>(n);
  return {4 * elements, (2 * elements + static_cast<double>(n)) * bytes_per_element};
}

}  // namespace shardproof::ops
