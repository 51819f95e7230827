// Rotary position embedding (Su et al. 2021) with the "rotate half" pairing of Hugging Face models:
// element i of a head turns with element i + head_dim/2 by the angle position * theta^(-2i/head_dim),
//   a' = a cos - b sin,  b' = b cos + a sin,  both stored.
// Angle, cosine and sine are taken in double; in `exact` cosine and sine are rounded to multiples of kExpStep, so that
// the products and their sum are exact before the store.
#pragma once

#include <cstdint>
#include <span>

#include "ops/cost.h"
#include "ops/format.h"
#include "ops/matrix.h"

namespace shardproof::ops {

/// Cosines and sines of the positions 0 .. positions - 1, for the many calls of a run that turn by the same angles.
template <class T>
class RopeTable {
 public:
  RopeTable(Index positions, Index head_dim, double theta, Format format);

  Index positions() const { return values_.rows(); }
  Index head_dim() const { return values_.cols(); }
  Format format() const { return format_; }
  std::span<const T> cosine(Index position) const { return values_.row(position).first(half()); }
  std::span<const T> sine(Index position) const { return values_.row(position).last(half()); }

 private:
  std::size_t half() const { return static_cast<std::size_t>(values_.cols() / 2); }

  Matrix<T> values_;  // [positions, head_dim]: cosines, then sines
  Format format_;
};

/// Rotates every head of x [tokens, heads * head_dim] in place; positions [tokens]. head_dim is even.
/// Throws ShapeError for a position that the table does not have.
template <class T>
void rope(MatrixView<T> x, std::span<const std::int64_t> positions, const RopeTable<T>& table);

/// The same without a table: the angles of every row are computed anew.
template <class T>
void rope(MatrixView<T> x, std::span<const std::int64_t> positions, Index head_dim, double theta, Format format);

/// 6 flops a pair; x read and written.
constexpr Cost rope_cost(Index tokens, Index width, int bytes_per_element) {
  const double elements = static_cast<double>(tokens) * static_cast<double>(width);
  return {3 * elements, 2 * elements * bytes_per_element};
}

}  // namespace shardproof::ops
