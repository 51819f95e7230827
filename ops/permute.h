// Movement of token rows to and from experts.
#pragma once

#include <cstdint>
#include <span>

#include "ops/cost.h"
#include "ops/format.h"
#include "ops/matrix.h"

namespace shardproof::ops {

/// out.row(i) = x.row(rows[i]); rows [n], out [n, x.cols]. Throws ShapeError for a row outside x.
template <class T>
void gather_rows(MatrixView<const T> x, std::span<const std::int64_t> rows, MatrixView<T> out);

/// out.row(t) = stored(sum over slots s = 0, 1, ... of weights(t, s) * y.row(positions(t, s))), products and sums of T
/// in slot order. weights, positions [tokens, slots], out [tokens, y.cols]. No slots give zeros.
/// Throws ShapeError for a position outside y.
template <class T>
void combine(MatrixView<const T> y, MatrixView<const std::int64_t> positions, MatrixView<const T> weights,
             Format format, MatrixView<T> out);

constexpr Cost gather_rows_cost(Index rows, Index cols, int bytes_per_element) {
  return {0, 2.0 * static_cast<double>(rows) * static_cast<double>(cols) * bytes_per_element};
}

constexpr Cost combine_cost(Index tokens, Index slots, Index cols, int bytes_per_element) {
  const double elements = static_cast<double>(tokens) * static_cast<double>(cols), k = static_cast<double>(slots);
  return {2 * k * elements, (k + 1) * elements * bytes_per_element};
}

}  // namespace shardproof::ops
