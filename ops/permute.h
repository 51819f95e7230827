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

/// In place of a position: the slot's row is not in y, but on another rank.
inline constexpr std::int64_t kElsewhere = -1;

/// out.row(t) = stored(sum over slots s = 0, 1, ... of weights(t, s) * y.row(positions(t, s))), products and sums of T
/// in slot order. weights, positions [tokens, slots], out [tokens, y.cols]. No slots give zeros, and a slot without a
/// position (kElsewhere) adds nothing. Throws ShapeError for any other position outside y.
template <class T>
void combine(MatrixView<const T> y, MatrixView<const std::int64_t> positions, MatrixView<const T> weights,
             Format format, MatrixView<T> out);

constexpr Cost gather_rows_cost(Index rows, Index cols, int bytes_per_element) {
  return {0, 2.0 * static_cast<double>(rows) * static_cast<double>(cols) * bytes_per_element};
}

/// Of so many rows of y in all.
constexpr Cost combine_rows_cost(Index tokens, Index rows, Index cols, int bytes_per_element) {
  const double width = static_cast<double>(cols), added = static_cast<double>(rows) * width;
  return {2 * added, (added + static_cast<double>(tokens) * width) * bytes_per_element};
}

constexpr Cost combine_cost(Index tokens, Index slots, Index cols, int bytes_per_element) {
  return combine_rows_cost(tokens, tokens * slots, cols, bytes_per_element);
}

}  // namespace shardproof::ops
