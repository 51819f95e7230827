// Compiled with contraction on, as gemm.cpp is: `exact` takes the other road.
#include <algorithm>
#include <limits>

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

/// Keys transposed panel by panel, [tokens / kWidth, head_dim, kWidth], zeros after the last token.
template <class T>
Matrix<T> transposed_panels(TokenRowsOf<T> k, Index tokens) {
  constexpr Index kWidth = panel::kWidth<T>;
  Matrix<T> result(panel::padded<T>(tokens) / kWidth, k.cols() * kWidth);
  for (Index j = 0; j < result.rows() * kWidth; ++j) {
    T* to = result.row(j / kWidth).data() + j % kWidth;
    const T* const from = j < tokens ? k.row(j) : nullptr;
    for (Index d = 0; d < k.cols(); ++d) to[d * kWidth] = from != nullptr ? from[d] : T{0};
  }
  return result;
}

/// Values cut into panels of kWidth columns, [head_dim / kWidth, tokens, kWidth], zeros beyond head_dim: a panel is
/// walked token by token, and rows a power of two apart would share a few sets of the first-level cache.
template <class T>
Matrix<T> column_panels(TokenRowsOf<T> v, Index tokens) {
  constexpr Index kWidth = panel::kWidth<T>;
  Matrix<T> result = Matrix<T>::zeros(panel::padded<T>(v.cols()) / kWidth, tokens * kWidth);
  for (Index d = 0; d < v.cols(); d += kWidth) {
    const Index width = std::min(kWidth, v.cols() - d);
    for (Index t = 0; t < tokens; ++t) {
      std::copy_n(v.row(t) + d, width, result.row(d / kWidth).data() + t * kWidth);
    }
  }
  return result;
}

template <class T>
struct Tile {
  Tile(Index width, Index value_width)
      : queries(kQueries, width), scores(kQueries, kKeys), context(kQueries, panel::padded<T>(value_width)) {}
  Matrix<T> queries;  // [kQueries, head_dim], times the scale
  Matrix<T> scores;   // [kQueries, kKeys], then the exponentials
  Matrix<T> context;  // [kQueries, padded value_dim]
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

/// Rows [0, rows) of the tile, the first of them token `first` of the sequence, against all keys that they may see.
template <class T>
void attend_block(Tile<T>& tile, Index first, Index rows, Index window, const Matrix<T>& keys,
                  const Matrix<T>& values) {
  constexpr Index kWidth = panel::kWidth<T>;
  const Index depth = tile.queries.cols();
  const Index earliest = std::max<Index>(0, first + 1 - window);
  for (Index begin = earliest / kKeys * kKeys; begin < first + rows; begin += kKeys) {
    const Index seen = std::min(kKeys, first + rows - begin);
    for (Index j = 0; j < seen; j += kWidth) {
      const T* b = keys.row((begin + j) / kWidth).data();
      for (Index i = 0; i < rows; i += panel::kRows) {
        const Index count = std::min(panel::kRows, rows - i);
        if (begin + j >= first + i + count) continue;  // keys that none of these rows may see
        panel::multiply<T>(tile.queries.row(i).data(), depth, count, b, kWidth, depth, panel::Start::zero,
                           tile.scores.row(i).data() + j, kKeys);
      }
    }
    const auto keys_of = [&](Index row) { return std::clamp(first + row + 1 - begin, Index{0}, kKeys); };
    const auto from_of = [&](Index row) { return std::clamp(first + row + 1 - window - begin, Index{0}, kKeys); };
    for (Index i = 0; i < rows; ++i) {
      if (keys_of(i) > from_of(i)) soften(tile, i, from_of(i), keys_of(i));
    }
    for (Index d = 0; d < tile.context.cols(); d += kWidth) {
      const T* b = values.row(d / kWidth).data() + begin * kWidth;
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
        panel::multiply<T>(tile.scores.row(i).data(), kKeys, count, b, kWidth, common, panel::Start::sum_so_far,
                           context, tile.context.cols());
        for (Index r = 1; r < count; ++r) {
          if (keys_of(i + r) == common) continue;
          panel::multiply<T>(tile.scores.row(i + r).data() + common, kKeys, 1, b + common * kWidth, kWidth,
                             keys_of(i + r) - common, panel::Start::sum_so_far, context + r * tile.context.cols(),
                             tile.context.cols());
        }
      }
    }
  }
}

}  // namespace

template <class T>
void attend_in_tiles(MatrixView<const T> q, TokenRowsOf<T> k, TokenRowsOf<T> v, Index past,
                     const HeadOptions<T>& options, Format format, MatrixView<T> out) {
  const Index tokens = q.rows, width = k.cols(), value_width = v.cols();
  const Matrix<T> keys = transposed_panels<T>(k, past + tokens);
  const Matrix<T> values = column_panels<T>(v, past + tokens);
  Tile<T> tile(width, value_width);
  simd::with_rounding<T>(format, [&](auto rounding) {
    for (Index head = 0; head < q.cols / width; ++head) {
      for (Index first = 0; first < tokens; first += kQueries) {
        const Index rows = std::min(kQueries, tokens - first);
        for (Index i = 0; i < rows; ++i) {
          simd::transform<T>(
              width, tile.queries.row(i).data(), [&](auto value) { return value * options.scale; },
              q.row(first + i).data() + head * width);
          std::fill_n(tile.context.row(i).data(), tile.context.cols(), T{0});
          tile.largest[i] = options.sinks == nullptr ? -std::numeric_limits<T>::infinity() : options.sinks[head];
          tile.sum[i] = options.sinks == nullptr ? T{0} : T{1};
        }
        attend_block(tile, past + first, rows, options.window, keys, values);
        for (Index i = 0; i < rows; ++i) {
          simd::transform<T>(
              value_width, out.row(first + i).data() + head * value_width,
              [&](auto value) { return rounding(value / tile.sum[i]); }, tile.context.row(i).data());
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
