// Elementwise sums and products: the residual connection, biases, gates.
#pragma once

#include <span>

#include "ops/cost.h"
#include "ops/format.h"
#include "ops/matrix.h"

namespace shardproof::ops {

/// x(i, j) += bias[j], x [rows, cols], bias [cols]. Not rounded.
template <class T>
void add_bias(MatrixView<T> x, std::span<const T> bias);

/// out(i, j) = stored(x(i, j) / (1 + exp(-logits(i, 0)))), x, out [rows, cols], logits [rows, 1]; out may be x. One
/// operation of T a step: exponential, sum, 1 over it, product; in `exact`, that quotient is rounded to kExpStep.
template <class T>
void gate_rows(MatrixView<const T> x, MatrixView<const T> logits, Format format, MatrixView<T> out);
/// out = stored(x + y); all [rows, cols]; out may be x or y.
template <class T>
void add(MatrixView<const T> x, MatrixView<const T> y, Format format, MatrixView<T> out);

/// out = stored(x + stored(factor y)); the same shapes; one operation of T a step.
template <class T>
void add_scaled(MatrixView<const T> x, MatrixView<const T> y, double factor, Format format, MatrixView<T> out);
/// x = stored(factor x), x = stored(x / divisor).
template <class T>
void scale(MatrixView<T> x, double factor, Format format);
template <class T>
void divide(MatrixView<T> x, double divisor, Format format);

/// A product an element; x read and written.
constexpr Cost scale_cost(Index rows, Index cols, int bytes_per_element) {
  const double elements = static_cast<double>(rows) * static_cast<double>(cols);
  return {elements, 2 * elements * bytes_per_element};
}

constexpr Cost add_cost(Index rows, Index cols, int bytes_per_element) {
  const double elements = static_cast<double>(rows) * static_cast<double>(cols);
  return {elements, 3 * elements * bytes_per_element};
}

}  // namespace shardproof::ops
