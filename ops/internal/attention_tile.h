// What attention in tiles of keys has of each row while it walks: its scores with a tile, the running maximum, and the
// sums so far. For files that are compiled with contraction on.
#pragma once

#include <algorithm>
#include <limits>
#include <utility>

#include "ops/attention.h"
#include "ops/internal/attend.h"
#include "ops/internal/math.h"
#include "ops/internal/panel.h"

namespace shardproof::ops::tiles {

using simd::Vec;

inline constexpr Index kQueries = 48;
inline constexpr Index kKeys = kAttentionTile;
static_assert(kQueries % panel::kRows == 0 && kKeys % panel::kWidth<float> == 0 && kKeys % simd::kPartials<float> == 0);

/// Exchanges lanes and rows.
template <class T, std::size_t kSpan, int... kLane>
inline void transpose(Vec<T> (&rows)[sizeof...(kLane)], std::integer_sequence<int, kLane...> lanes) {
  constexpr int kOther = static_cast<int>(sizeof...(kLane)), kStep = static_cast<int>(kSpan);
  SHARDPROOF_UNROLL
  for (std::size_t i = 0; i < sizeof...(kLane); ++i) {
    if ((i & kSpan) != 0) continue;
    const Vec<T> a = rows[i], b = rows[i + kSpan];
    rows[i] = __builtin_shufflevector(a, b, ((kLane & kStep) == 0 ? kLane : kLane - kStep + kOther)...);
    rows[i + kSpan] = __builtin_shufflevector(a, b, ((kLane & kStep) == 0 ? kLane + kStep : kLane + kOther)...);
  }
  if constexpr (2 * kSpan < sizeof...(kLane)) transpose<T, 2 * kSpan>(rows, lanes);
}

template <class T>
struct Tile {
  /// For so many rows, kQueries at most.
  Tile(Index width, Index value_width, Index rows)
      : queries(whole(rows), width), scores(whole(rows), kKeys), context(whole(rows), panel::padded<T>(value_width)) {}
  static Index whole(Index rows) { return (rows + panel::kRows - 1) / panel::kRows * panel::kRows; }
  Matrix<T> queries;  // [rows, head_dim], times the scale
  Matrix<T> scores;   // [rows, kKeys], then the exponentials
  Matrix<T> context;  // [rows, padded value_dim]
  T largest[kQueries];
  T sum[kQueries];
};

/// Turns the scores `from` to `keys` of a row into exponentials, those before into zeros, and rescales what the row
/// has.
template <class T>
void soften(Tile<T>& tile, Index row, Index from, Index keys) {
  T* scores = tile.scores.row(row).data();
  std::fill_n(scores, from, -std::numeric_limits<T>::infinity());
  // Whole rounds of partial sums; the exponentials of what fills them up are zeros.
  constexpr Index kRound = simd::kPartials<T>;
  const Index begin = from / kRound * kRound;
  const Index padded = (keys + kRound - 1) / kRound * kRound;
  std::fill(scores + keys, scores + padded, -std::numeric_limits<T>::infinity());
  const T before = tile.largest[row];
  const T largest = std::max(before, simd::largest_of<T>(padded - begin, scores + begin));
  constexpr Index kTogether = std::min<Index>(4, simd::Partials<T>::vectors());
  simd::Partials<T> partials(T{0});
  for (Index j = begin; j < padded; j += kRound) {
    for (Index v = 0; v < partials.vectors(); v += kTogether) {
      Vec<T> p[static_cast<std::size_t>(kTogether)];
      T* const at = scores + j + v * simd::kLanes<T>;
      SHARDPROOF_UNROLL
      for (Index i = 0; i < kTogether; ++i) p[i] = simd::load<T>(at + i * simd::kLanes<T>) - largest;
      simd::exponentials<T>(p);
      SHARDPROOF_UNROLL
      for (Index i = 0; i < kTogether; ++i) {
        simd::store<T>(at + i * simd::kLanes<T>, p[i]);
        partials[v + i] += p[i];
      }
    }
  }
  const T sum = partials.fold([](auto a, auto b) { return a + b; });
  if (largest != before) {
    const T rescale = simd::exponential<T>(simd::broadcast<T>(before - largest))[0];
    tile.sum[row] *= rescale;
    simd::transform<T>(
        tile.context.cols(), tile.context.row(row).data(), [&](auto value) { return value * rescale; },
        tile.context.row(row).data());
    tile.largest[row] = largest;
  }
  tile.sum[row] += sum;
}

/// The first tile of keys that a token sees some of.
inline Index first_tile(Index token, Index window) {
  return std::max<Index>(0, token + 1 - window) / kKeys * kKeys;
}

template <class T>
void begin_row(Tile<T>& tile, Index row, const T* query, Index head, const HeadOptions<T>& options) {
  simd::transform<T>(
      tile.queries.cols(), tile.queries.row(row).data(), [&](auto value) { return value * options.scale; }, query);
  std::fill_n(tile.context.row(row).data(), tile.context.cols(), T{0});
  tile.largest[row] = options.sinks == nullptr ? -std::numeric_limits<T>::infinity() : options.sinks[head];
  tile.sum[row] = options.sinks == nullptr ? T{0} : T{1};
}

template <class T, class Rounding>
void end_row(const Tile<T>& tile, Index row, Index value_width, Rounding rounding, T* out) {
  simd::transform<T>(
      value_width, out, [&](auto value) { return rounding(value / tile.sum[row]); }, tile.context.row(row).data());
}

}  // namespace shardproof::ops::tiles
