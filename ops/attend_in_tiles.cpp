// Compiled with contraction on, as gemm.cpp is: `exact` takes the other road.
#include <algorithm>
#include <limits>
#include <vector>

#include "ops/attention.h"
#include "ops/internal/attend.h"
#include "ops/internal/math.h"
#include "ops/internal/panel.h"

namespace shardproof::ops {

namespace {

using simd::Vec;

constexpr Index kQueries = 48;
constexpr Index kKeys = kAttentionTile;
static_assert(kQueries % panel::kRows == 0 && kKeys % panel::kWidth<float> == 0 && kKeys % simd::kPartials<float> == 0);

/// Keys and values of some tokens of a sequence, in the order in which they are walked.
template <class T>
struct Packed {
  Index first = 0;  ///< the token that comes first
  /// Transposed panel by panel, [tokens / kWidth, head_dim, kWidth], zeros after the last token.
  Matrix<T> keys;
  /// Cut into panels of kWidth columns, [value_dim / kWidth, tokens, kWidth], zeros beyond value_dim: a panel is walked
  /// token by token, and rows a power of two apart would share a few sets of the first-level cache.
  Matrix<T> values;
};

template <class T>
void pack_keys(TokenRowsOf<T> k, Index first, Index tokens, Matrix<T>& panels) {
  constexpr Index kWidth = panel::kWidth<T>;
  for (Index j = 0; j < panel::padded<T>(tokens); ++j) {
    T* to = panels.row(j / kWidth).data() + j % kWidth;
    const T* const from = j < tokens ? k.row(first + j) : nullptr;
    for (Index d = 0; d < k.cols(); ++d) to[d * kWidth] = from != nullptr ? from[d] : T{0};
  }
}

template <class T>
void pack_values(TokenRowsOf<T> v, Index first, Index tokens, Matrix<T>& panels) {
  constexpr Index kWidth = panel::kWidth<T>;
  for (Index t = 0; t < tokens; ++t) {
    const T* const from = v.row(first + t);
    for (Index d = 0; d < v.cols(); d += kWidth) {
      std::copy_n(from + d, std::min(kWidth, v.cols() - d), panels.row(d / kWidth).data() + t * kWidth);
    }
  }
}

/// Room for so many tokens.
template <class T>
Packed<T> packed(TokenRowsOf<T> k, TokenRowsOf<T> v, Index tokens) {
  constexpr Index kWidth = panel::kWidth<T>;
  return {.first = 0,
          .keys = Matrix<T>(panel::padded<T>(tokens) / kWidth, k.cols() * kWidth),
          .values = Matrix<T>::zeros(panel::padded<T>(v.cols()) / kWidth, tokens * kWidth)};
}

template <class T>
void pack(TokenRowsOf<T> k, TokenRowsOf<T> v, Index first, Index tokens, Packed<T>& into) {
  into.first = first;
  pack_keys(k, first, tokens, into.keys);
  pack_values(v, first, tokens, into.values);
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
  const Index padded = (keys + kRound - 1) / kRound * kRound;
  std::fill(scores + keys, scores + padded, -std::numeric_limits<T>::infinity());
  const T before = tile.largest[row];
  const T largest = std::max(before, simd::largest_of<T>(padded, scores));
  simd::Partials<T> partials(T{0});
  for (Index j = 0; j < padded; j += kRound) {
    for (Index v = 0; v < partials.vectors(); ++v) {
      T* const at = scores + j + v * simd::kLanes<T>;
      const Vec<T> p = simd::exponential<T>(simd::load<T>(at) - largest);
      simd::store<T>(at, p);
      partials[v] += p;
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

/// Rows [0, rows) of the tile, the first of them token `first` of the sequence, against the keys from `begin` on, kKeys
/// at most, that they may see.
template <class T>
void attend_tile(Tile<T>& tile, Index first, Index rows, Index window, Index begin, const Packed<T>& packed) {
  constexpr Index kWidth = panel::kWidth<T>;
  const Index depth = tile.queries.cols();
  const Index seen = std::min(kKeys, first + rows - begin);
  for (Index j = 0; j < seen; j += kWidth) {
    const T* keys = packed.keys.row((begin - packed.first + j) / kWidth).data();
    for (Index i = 0; i < rows; i += panel::kRows) {
      const Index count = std::min(panel::kRows, rows - i);
      if (begin + j >= first + i + count) continue;  // keys that none of these rows may see
      panel::multiply<T>(tile.queries.row(i).data(), depth, count, keys, kWidth, depth, panel::Start::zero,
                         tile.scores.row(i).data() + j, kKeys);
    }
  }
  const auto keys_of = [&](Index row) { return std::clamp(first + row + 1 - begin, Index{0}, kKeys); };
  const auto from_of = [&](Index row) { return std::clamp(first + row + 1 - window - begin, Index{0}, kKeys); };
  for (Index i = 0; i < rows; ++i) {
    if (keys_of(i) > from_of(i)) soften(tile, i, from_of(i), keys_of(i));
  }
  for (Index d = 0; d < tile.context.cols(); d += kWidth) {
    const T* b = packed.values.row(d / kWidth).data() + (begin - packed.first) * kWidth;
    for (Index i = 0; i < rows; i += panel::kRows) {
      const Index count = std::min(panel::kRows, rows - i);
      T* const context = tile.context.row(i).data() + d;
      // Where a window begins inside the tile, each row alone: no row touches values that it does not see.
      if (from_of(i + count - 1) > 0) {
        for (Index r = 0; r < count; ++r) {
          const Index from = from_of(i + r), seen_here = keys_of(i + r) - from;
          if (seen_here <= 0) continue;
          panel::multiply<T>(tile.scores.row(i + r).data() + from, kKeys, 1, b + from * kWidth, kWidth, seen_here,
                             panel::Start::sum_so_far, context + r * tile.context.cols(), tile.context.cols());
        }
        continue;
      }
      // What all rows see, together; the rest of each row alone, so that no row touches a later token's values.
      const Index common = keys_of(i);
      panel::multiply<T>(tile.scores.row(i).data(), kKeys, count, b, kWidth, common, panel::Start::sum_so_far, context,
                         tile.context.cols());
      for (Index r = 1; r < count; ++r) {
        if (keys_of(i + r) == common) continue;
        panel::multiply<T>(tile.scores.row(i + r).data() + common, kKeys, 1, b + common * kWidth, kWidth,
                           keys_of(i + r) - common, panel::Start::sum_so_far, context + r * tile.context.cols(),
                           tile.context.cols());
      }
    }
  }
}

/// The first tile of keys that a token sees some of.
Index first_tile(Index token, Index window) {
  return std::max<Index>(0, token + 1 - window) / kKeys * kKeys;
}

template <class T>
void begin_rows(Tile<T>& tile, MatrixView<const T> q, Index width, Index head, const HeadOptions<T>& options) {
  for (Index i = 0; i < q.rows; ++i) {
    simd::transform<T>(
        width, tile.queries.row(i).data(), [&](auto value) { return value * options.scale; },
        q.row(i).data() + head * width);
    std::fill_n(tile.context.row(i).data(), tile.context.cols(), T{0});
    tile.largest[i] = options.sinks == nullptr ? -std::numeric_limits<T>::infinity() : options.sinks[head];
    tile.sum[i] = options.sinks == nullptr ? T{0} : T{1};
  }
}

template <class T, class Rounding>
void end_rows(const Tile<T>& tile, Index value_width, Index head, Rounding rounding, MatrixView<T> out) {
  for (Index i = 0; i < out.rows; ++i) {
    simd::transform<T>(
        value_width, out.row(i).data() + head * value_width, [&](auto value) { return rounding(value / tile.sum[i]); },
        tile.context.row(i).data());
  }
}

/// Few queries, as in a decode step: keys are packed a tile at a time, which stays in cache, for all heads that share
/// them.
template <class T, class Rounding>
void attend_few(MatrixView<const T> q, TokenRowsOf<T> k, TokenRowsOf<T> v, Index past, const HeadOptions<T>& options,
                Rounding rounding, MatrixView<T> out) {
  const Index tokens = past + q.rows, width = k.cols(), value_width = v.cols();
  std::vector<Tile<T>> heads;
  for (Index head = 0; head < q.cols / width; ++head) {
    begin_rows(heads.emplace_back(width, value_width, q.rows), q, width, head, options);
  }
  Packed<T> tile = packed(k, v, std::min(kKeys, tokens));
  for (Index begin = first_tile(past, options.window); begin < tokens; begin += kKeys) {
    pack(k, v, begin, std::min(kKeys, tokens - begin), tile);
    for (Tile<T>& head : heads) attend_tile(head, past, q.rows, options.window, begin, tile);
  }
  for (std::size_t head = 0; head < heads.size(); ++head) {
    end_rows(heads[head], value_width, static_cast<Index>(head), rounding, out);
  }
}

}  // namespace

template <class T>
void attend_in_tiles(MatrixView<const T> q, TokenRowsOf<T> k, TokenRowsOf<T> v, Index past,
                     const HeadOptions<T>& options, Format format, MatrixView<T> out) {
  const Index tokens = q.rows, width = k.cols(), value_width = v.cols();
  simd::with_rounding<T>(format, [&](auto rounding) {
    if (tokens <= kQueries) return attend_few(q, k, v, past, options, rounding, out);
    Packed<T> all = packed(k, v, past + tokens);
    pack(k, v, 0, past + tokens, all);
    Tile<T> tile(width, value_width, kQueries);
    for (Index head = 0; head < q.cols / width; ++head) {
      for (Index first = 0; first < tokens; first += kQueries) {
        const Index rows = std::min(kQueries, tokens - first), at = past + first;
        begin_rows(tile, q.row_range(first, rows), width, head, options);
        for (Index begin = first_tile(at, options.window); begin < at + rows; begin += kKeys) {
          attend_tile(tile, at, rows, options.window, begin, all);
        }
        end_rows(tile, value_width, head, rounding, out.row_range(first, rows));
      }
    }
  });
}

template void attend_in_tiles(MatrixView<const float>, TokenRowsOf<float>, TokenRowsOf<float>, Index,
                              const HeadOptions<float>&, Format, MatrixView<float>);
template void attend_in_tiles(MatrixView<const double>, TokenRowsOf<double>, TokenRowsOf<double>, Index,
                              const HeadOptions<double>&, Format, MatrixView<double>);

}  // namespace shardproof::ops
