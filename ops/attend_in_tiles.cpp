// Compiled with contraction on, as gemm.cpp is: `exact` takes the other road.
#include <algorithm>
#include <utility>
#include <vector>

#include "ops/internal/attend.h"
#include "ops/internal/attention_tile.h"
#include "ops/internal/panel.h"

namespace shardproof::ops {

namespace {

using simd::Vec;
using tiles::first_tile;
using tiles::kKeys;
using tiles::kQueries;
using tiles::Tile;

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

/// Rows that are asked for ahead: of one head among several, they lie apart, and the processor's prefetcher stops at
/// every page.
constexpr Index kRowsAhead = 16;

/// Asks the caches for a row that is packed later.
template <class T>
void ask_for(TokenRowsOf<T> rows, Index token) {
  constexpr Index kPerLine = 64 / static_cast<Index>(sizeof(T));
  const T* const row = rows.row(token);
  for (Index d = 0; d < rows.cols(); d += kPerLine) __builtin_prefetch(row + d);
}

/// The keys of kLanes tokens to the columns from `to` on.
template <class T>
void pack_key_lanes(TokenRowsOf<T> k, Index first, T* to) {
  constexpr Index kL = simd::kLanes<T>, kWidth = panel::kWidth<T>;
  const T* from[static_cast<std::size_t>(kL)];
  for (Index j = 0; j < kL; ++j) from[j] = k.row(first + j);
  Index d = 0;
  for (; d + kL <= k.cols(); d += kL) {
    Vec<T> lanes[static_cast<std::size_t>(kL)];
    SHARDPROOF_UNROLL
    for (Index j = 0; j < kL; ++j) lanes[j] = simd::load<T>(from[j] + d);
    tiles::transpose<T, 1>(lanes, std::make_integer_sequence<int, static_cast<int>(kL)>{});
    SHARDPROOF_UNROLL
    for (Index j = 0; j < kL; ++j) simd::store<T>(to + (d + j) * kWidth, lanes[j]);
  }
  for (; d < k.cols(); ++d) {
    for (Index j = 0; j < kL; ++j) to[d * kWidth + j] = from[j][d];
  }
}

template <class T>
void pack_keys(TokenRowsOf<T> k, Index first, Index tokens, Matrix<T>& panels) {
  constexpr Index kL = simd::kLanes<T>, kWidth = panel::kWidth<T>;
  const Index whole = tokens / kL * kL;
  for (Index j = 0; j < whole; j += kL) {
    for (Index i = j; i < j + kL; ++i) ask_for(k, first + std::min(i + kRowsAhead, tokens - 1));
    pack_key_lanes(k, first + j, panels.row(j / kWidth).data() + j % kWidth);
  }
  for (Index j = whole; j < panel::padded<T>(tokens); ++j) {
    T* to = panels.row(j / kWidth).data() + j % kWidth;
    const T* const from = j < tokens ? k.row(first + j) : nullptr;
    for (Index d = 0; d < k.cols(); ++d) to[d * kWidth] = from != nullptr ? from[d] : T{0};
  }
}

template <class T>
void pack_values(TokenRowsOf<T> v, Index first, Index tokens, Matrix<T>& panels) {
  constexpr Index kL = simd::kLanes<T>, kWidth = panel::kWidth<T>;
  const Index whole = v.cols() / kWidth * kWidth, rest = v.cols() - whole;
  for (Index t = 0; t < tokens; ++t) {
    ask_for(v, first + std::min(t + kRowsAhead, tokens - 1));
    const T* const from = v.row(first + t);
    for (Index d = 0; d < whole; d += kWidth) {
      T* const to = panels.row(d / kWidth).data() + t * kWidth;
      simd::store<T>(to, simd::load<T>(from + d));
      simd::store<T>(to + kL, simd::load<T>(from + d + kL));
    }
    if (rest > 0) std::copy_n(from + whole, rest, panels.row(whole / kWidth).data() + t * kWidth);
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

/// Which of the keys of a tile each of its rows sees.
struct Sight {
  Index first = 0;  ///< the token of the first row
  Index window = 0;
  Index begin = 0;  ///< the token of the first key

  Index from(Index row) const { return std::clamp(first + row + 1 - window - begin, Index{0}, kKeys); }
  Index end(Index row) const { return std::clamp(first + row + 1 - begin, Index{0}, kKeys); }
};

/// Adds to `count` rows of the context what they make of the values that each sees, one panel of columns wide: of those
/// that all see together, before and after that of each row alone, so that no row touches others' values. Each row goes
/// through its keys in order.
template <class T>
void add_values(Tile<T>& tile, Index row, Index count, const Sight& sight, const T* values, T* context) {
  constexpr Index kWidth = panel::kWidth<T>;
  const auto add = [&](Index r, Index rows, Index from, Index end) {
    if (from >= end) return;
    panel::multiply<T>(tile.scores.row(row + r).data() + from, kKeys, rows, values + from * kWidth, kWidth, end - from,
                       panel::Start::sum_so_far, context + r * tile.context.cols(), tile.context.cols());
  };
  const Index from = sight.from(row + count - 1), end = std::max(from, sight.end(row));
  for (Index r = 0; r < count; ++r) add(r, 1, sight.from(row + r), std::min(from, sight.end(row + r)));
  add(0, count, from, end);
  for (Index r = 0; r < count; ++r) add(r, 1, std::max(end, sight.from(row + r)), sight.end(row + r));
}

/// Rows [0, rows) of the tile against the keys from sight.begin on, kKeys at most, that they may see.
template <class T>
void attend_tile(Tile<T>& tile, Index rows, const Sight& sight, const Packed<T>& packed) {
  constexpr Index kWidth = panel::kWidth<T>;
  const Index depth = tile.queries.cols(), first_key = sight.begin - packed.first;
  for (Index j = sight.from(0) / kWidth * kWidth; j < sight.end(rows - 1); j += kWidth) {
    const T* keys = packed.keys.row((first_key + j) / kWidth).data();
    for (Index i = 0; i < rows; i += panel::kRows) {
      const Index count = std::min(panel::kRows, rows - i);
      // Keys that none of these rows may see.
      if (j >= sight.end(i + count - 1) || j + kWidth <= sight.from(i)) continue;
      panel::multiply<T>(tile.queries.row(i).data(), depth, count, keys, kWidth, depth, panel::Start::zero,
                         tile.scores.row(i).data() + j, kKeys);
    }
  }
  for (Index i = 0; i < rows; ++i) {
    if (sight.end(i) > sight.from(i)) tiles::soften(tile, i, sight.from(i), sight.end(i));
  }
  for (Index d = 0; d < tile.context.cols(); d += kWidth) {
    const T* values = packed.values.row(d / kWidth).data() + first_key * kWidth;
    for (Index i = 0; i < rows; i += panel::kRows) {
      add_values(tile, i, std::min(panel::kRows, rows - i), sight, values, tile.context.row(i).data() + d);
    }
  }
}

/// Few queries, as in a chunk: keys are packed a tile at a time, which stays in cache, for all heads that share them.
template <class T, class Rounding>
void attend_few(MatrixView<const T> q, TokenRowsOf<T> k, TokenRowsOf<T> v, Index past, const HeadOptions<T>& options,
                Rounding rounding, MatrixView<T> out) {
  const Index tokens = past + q.rows, width = k.cols(), value_width = v.cols(), count = q.cols / width;
  std::vector<Tile<T>> heads;
  for (Index head = 0; head < count; ++head) {
    Tile<T>& tile = heads.emplace_back(width, value_width, q.rows);
    for (Index i = 0; i < q.rows; ++i) tiles::begin_row(tile, i, q.row(i).data() + head * width, head, options);
  }
  Packed<T> tile = packed(k, v, std::min(kKeys, tokens));
  for (Index begin = first_tile(past, options.window); begin < tokens; begin += kKeys) {
    pack(k, v, begin, std::min(kKeys, tokens - begin), tile);
    for (Tile<T>& head : heads) attend_tile(head, q.rows, {past, options.window, begin}, tile);
  }
  for (Index head = 0; head < count; ++head) {
    for (Index i = 0; i < q.rows; ++i) {
      tiles::end_row(heads[static_cast<std::size_t>(head)], i, value_width, rounding,
                     out.row(i).data() + head * value_width);
    }
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
        for (Index i = 0; i < rows; ++i)
          tiles::begin_row(tile, i, q.row(first + i).data() + head * width, head, options);
        for (Index begin = first_tile(at, options.window); begin < at + rows; begin += kKeys) {
          attend_tile(tile, rows, {at, options.window, begin}, all);
        }
        for (Index i = 0; i < rows; ++i) {
          tiles::end_row(tile, i, value_width, rounding, out.row(first + i).data() + head * value_width);
        }
      }
    }
  });
}

template void attend_in_tiles(MatrixView<const float>, TokenRowsOf<float>, TokenRowsOf<float>, Index,
                              const HeadOptions<float>&, Format, MatrixView<float>);
template void attend_in_tiles(MatrixView<const double>, TokenRowsOf<double>, TokenRowsOf<double>, Index,
                              const HeadOptions<double>&, Format, MatrixView<double>);

}  // namespace shardproof::ops
