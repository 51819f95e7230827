// Rotary position embedding (Su et al. 2021): pairs of a head's elements turn by the angle position * frequency,
//   a' = a cos - b sin,  b' = b cos + a sin,  both stored.
// By default element i turns with element i + head_dim/2 ("rotate half" of Hugging Face models), with the frequency
// theta^(-2i/head_dim).
// Angle, cosine and sine are taken in double; in `exact` cosine and sine are rounded to multiples of kExpStep, so that
// the products and their sum are exact before the store.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ops/cost.h"
#include "ops/format.h"
#include "ops/matrix.h"

namespace shardproof::ops {

/// Which elements of a head turn together, and how fast. With d pairs, pair i is the elements begin + i and
/// begin + d + i, or, interleaved, begin + 2i and begin + 2i + 1. The others are left as they are.
struct RopePairs {
  Index head_dim = 0;
  Index begin = 0;
  bool interleaved = false;
  std::vector<double> frequencies;  ///< of each pair, radians a position
  double amplitude = 1;             ///< what cosines and sines are multiplied by, before they are rounded
};

/// theta^(-2i/dim) of the dim / 2 pairs. dim is even.
std::vector<double> rope_frequencies(Index dim, double theta);
/// Llama 3.1's: divided by `factor` where the wavelength 2 pi / f exceeds context / low, as they are below
/// context / high; between, (1 - s) f / factor + s f with s = (context / wavelength - low) / (high - low).
std::vector<double> llama3_frequencies(std::vector<double> plain, double factor, double context, double low,
                                       double high);
/// YaRN's (Peng et al. 2023): f / factor * r + f * (1 - r), r = (i - first) / (last - first) held within 0..1, where
/// `first` and `last` are the pairs that turn beta_fast and beta_slow times in `context` positions, rounded outwards
/// if `truncate`, and held within 0..dim-1.
std::vector<double> yarn_frequencies(std::vector<double> plain, double theta, double factor, double context,
                                     double beta_fast, double beta_slow, bool truncate);

/// Cosines and sines of the positions 0 .. positions - 1, for the many calls of a run that turn by the same angles.
template <class T>
class RopeTable {
 public:
  RopeTable(Index positions, Index head_dim, double theta, Format format);
  RopeTable(Index positions, const RopePairs& pairs, Format format);

  Index positions() const { return values_.rows(); }
  Index head_dim() const { return head_dim_; }
  Index begin() const { return begin_; }
  bool interleaved() const { return interleaved_; }
  Format format() const { return format_; }
  std::span<const T> cosine(Index position) const { return values_.row(position).first(half()); }
  std::span<const T> sine(Index position) const { return values_.row(position).last(half()); }

 private:
  std::size_t half() const { return static_cast<std::size_t>(values_.cols() / 2); }

  Matrix<T> values_;  // [positions, 2 * pairs]: cosines, then sines
  Index head_dim_;
  Index begin_;
  bool interleaved_;
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
