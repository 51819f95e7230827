// Compiled with contraction on (see CMakeLists.txt): here, and only here, a * b + c is one fused operation where the
// instruction set has it. Every lane of every tile goes through the same expression, so which elements share a tile
// still makes no difference.
#include "ops/internal/gemm.h"

#include <algorithm>
#include <array>
#include <utility>

#include "ops/internal/simd.h"

namespace shardproof::ops::gemm {

namespace {

using simd::kLanes;
using simd::Vec;

// The accumulators of a tile (kTileRows x kTileCols) and the operands of one step fill the vector registers: 16 of
// them, or 32 with 512-bit vectors.
constexpr Index kTileRows = simd::kVectorBytes == 64 ? 6 : 3;
constexpr Index kTileCols = 4;
// Steps of one vector along k between two foldings of the lanes: long enough to make the folding cheap, short enough
// that kGroupCols rows of weights stay in the first-level cache.
constexpr Index kSteps = 64;
constexpr Index kGroupCols = 2 * kTileCols;
constexpr Index kRowsPerPack = 32 * kTileRows;
// From this many rows on, copying a group of weights costs less than reading its rows where they lie.
constexpr Index kRowsToPackWeights = 8 * kTileRows;

template <class T>
constexpr Index kBlock = kSteps* kLanes<T>;

/// Vectors that `depth` elements take.
template <class T>
constexpr Index steps_of(Index depth) {
  return (depth + kLanes<T> - 1) / kLanes<T>;
}

/// Lane i of span S: the lower halves of every span of a, then of b, side by side; with `upper`, the upper halves.
template <class V, int kSpan, bool kUpper, int... kLane>
inline V halves(V a, V b, std::integer_sequence<int, kLane...>) {
  constexpr int kCount = sizeof...(kLane);
  return __builtin_shufflevector(a, b,
                                 (kLane / kSpan * kSpan + kLane % (kSpan / 2) + (kUpper ? kSpan / 2 : 0) +
                                  (kLane % kSpan < kSpan / 2 ? 0 : kCount))...);
}

/// Folds spans of kSpan lanes of a and b to spans of kSpan / 2, a's and b's alternating.
template <class T, int kSpan>
inline Vec<T> fold(Vec<T> a, Vec<T> b) {
  using Lanes = std::make_integer_sequence<int, static_cast<int>(kLanes<T>)>;
  return halves<Vec<T>, kSpan, false>(a, b, Lanes{}) + halves<Vec<T>, kSpan, true>(a, b, Lanes{});
}

/// The sums of the lanes of four vectors, each folded in halves.
template <class T>
inline std::array<T, 4> sums_of(Vec<T> a, Vec<T> b, Vec<T> c, Vec<T> d) {
  constexpr int kWidth = static_cast<int>(kLanes<T>);
  if constexpr (kWidth == 2) {
    const Vec<T> ab = fold<T, 2>(a, b), cd = fold<T, 2>(c, d);
    return {ab[0], ab[1], cd[0], cd[1]};
  } else {
    Vec<T> all = fold<T, kWidth / 2>(fold<T, kWidth>(a, b), fold<T, kWidth>(c, d));
    // Four accumulators, spans of kWidth / 4: in order a, c, b, d.
    if constexpr (kWidth >= 16) all = fold<T, kWidth / 4>(all, all);
    if constexpr (kWidth >= 8) {
      constexpr int kSpan = kWidth >= 16 ? kWidth / 8 : kWidth / 4;
      all = fold<T, kSpan>(all, all);
    }
    constexpr int kQuarter = kWidth / 4;
    return {all[0], all[2 * kQuarter], all[kQuarter], all[3 * kQuarter]};
  }
}

/// One tile over `steps` vectors and a remainder of `rest` elements. Row i of x is at x + i * kLanes, its next vector
/// kRows * kLanes further (packed); row j of w likewise if kPacked, else at w + j * w_stride and contiguous.
template <class T, Index kRows, Index kCols, bool kPacked>
void tile(const T* x, const T* w, Index w_stride, Index steps, Index rest, bool first, T* y, Index y_stride) {
  constexpr Index kL = kLanes<T>;
  Vec<T> sum[kRows][kTileCols] = {};
  const auto step = [&](auto load_w) {
    Vec<T> row[kRows];
    for (Index i = 0; i < kRows; ++i) row[i] = simd::load<T>(x + i * kL);
    for (Index j = 0; j < kCols; ++j) {
      const Vec<T> weight = load_w(j);
      for (Index i = 0; i < kRows; ++i) sum[i][j] = row[i] * weight + sum[i][j];
    }
    x += kRows * kL;
  };
  for (Index s = 0; s < steps; ++s) {
    if constexpr (kPacked) {
      step([&](Index j) { return simd::load<T>(w + j * kL); });
      w += kCols * kL;
    } else {
      step([&](Index j) { return simd::load<T>(w + j * w_stride); });
      w += kL;
    }
  }
  if (!kPacked && rest > 0) step([&](Index j) { return simd::load_partial<T>(w + j * w_stride, rest); });

  for (Index i = 0; i < kRows; ++i) {
    const std::array<T, 4> sums = sums_of<T>(sum[i][0], sum[i][1], sum[i][2], sum[i][3]);
    for (Index j = 0; j < kCols; ++j) {
      T& to = y[i * y_stride + j];
      to = first ? sums[static_cast<std::size_t>(j)] : to + sums[static_cast<std::size_t>(j)];
    }
  }
}

template <class T>
using Tile = void (*)(const T*, const T*, Index, Index, Index, bool, T*, Index);

/// tiles[kPacked][rows - 1][cols - 1]
template <class T, bool kPacked, Index... kShape>
constexpr auto tiles_of(std::integer_sequence<Index, kShape...>) {
  return std::array<Tile<T>, sizeof...(kShape)>{&tile<T, kShape / kTileCols + 1, kShape % kTileCols + 1, kPacked>...};
}

template <class T, bool kPacked>
Tile<T> tile_of(Index rows, Index cols) {
  static constexpr auto kTiles = tiles_of<T, kPacked>(std::make_integer_sequence<Index, kTileRows * kTileCols>{});
  return kTiles[static_cast<std::size_t>((rows - 1) * kTileCols + cols - 1)];
}

/// Rows side by side, vector by vector, the last vector padded with zeros; returns the end of what was written.
template <class T>
T* pack_panel(MatrixView<const T> rows, Index k, Index depth, T* to) {
  constexpr Index kL = kLanes<T>;
  const Index whole = depth / kL, rest = depth % kL;
  for (Index i = 0; i < rows.rows; ++i) {
    const T* from = rows.row(i).data() + k;
    T* at = to + i * kL;
    for (Index s = 0; s < whole; ++s, from += kL, at += rows.rows * kL) simd::store<T>(at, simd::load<T>(from));
    if (rest > 0) simd::store<T>(at, simd::load_partial<T>(from, rest));
  }
  return to + rows.rows * steps_of<T>(depth) * kL;
}

/// One block of k for one group of at most kGroupCols weight rows and all rows of x.
template <class T>
void multiply_group(const PackedRows<T>& x, MatrixView<const T> w, Index k, T* packed, MatrixView<T> y) {
  const Index depth = std::min(kBlock<T>, x.depth() - k);
  const bool pack = packed != nullptr;
  if (pack) {
    T* to = packed;
    for (Index j = 0; j < w.rows; j += kTileCols) {
      to = pack_panel<T>(w.row_range(j, std::min(kTileCols, w.rows - j)), k, depth, to);
    }
  }
  const Index steps = pack ? steps_of<T>(depth) : depth / kLanes<T>;
  const Index rest = depth % kLanes<T>;
  for (Index i = 0; i < y.rows; i += kTileRows) {
    const Index rows = std::min(kTileRows, y.rows - i);
    const T* panel = x.panel(i, k);
    for (Index j = 0; j < w.rows; j += kTileCols) {
      const Index cols = std::min(kTileCols, w.rows - j);
      if (pack) {
        const T* weights = packed + j * steps * kLanes<T>;
        tile_of<T, true>(rows, cols)(panel, weights, 0, steps, 0, k == 0, &y(i, j), y.stride);
      } else {
        tile_of<T, false>(rows, cols)(panel, &w(j, k), w.stride, steps, rest, k == 0, &y(i, j), y.stride);
      }
    }
  }
}

}  // namespace

template <class T>
void PackedRows<T>::pack(MatrixView<const T> x) {
  rows_ = x.rows;
  depth_ = x.cols;
  const Index blocks = (depth_ + kBlock<T> - 1) / kBlock<T>;
  const Index width = steps_of<T>(depth_) * kLanes<T>;
  if (buffer_.size() < rows_ * width) buffer_ = Matrix<T>(rows_, width);
  T* to = buffer_.data();
  for (Index block = 0; block < blocks; ++block) {
    const Index k = block * kBlock<T>, depth = std::min(kBlock<T>, depth_ - k);
    for (Index i = 0; i < rows_; i += kTileRows) {
      to = pack_panel<T>(x.row_range(i, std::min(kTileRows, rows_ - i)), k, depth, to);
    }
  }
}

template <class T>
const T* PackedRows<T>::panel(Index row, Index k) const {
  // Blocks before this one are whole; panels before this one have the block's padded depth.
  const Index depth = steps_of<T>(std::min(kBlock<T>, depth_ - k)) * kLanes<T>;
  return buffer_.data() + rows_ * k + row * depth;
}

template <class T>
Index rows_per_pack() {
  return kRowsPerPack;
}

template <class T>
void multiply(const PackedRows<T>& x, MatrixView<const T> w, MatrixView<T> y) {
  if (y.rows == 0 || y.cols == 0) return;
  if (x.depth() == 0) {
    for (Index i = 0; i < y.rows; ++i) std::fill_n(y.row(i).data(), y.cols, T{0});
    return;
  }
  const auto group = [&](Index j, Index k, T* packed) {
    const Index cols = std::min(kGroupCols, w.rows - j);
    multiply_group<T>(x, w.row_range(j, cols), k, packed, y.col_range(j, cols));
  };
  if (y.rows < kRowsToPackWeights) {
    // Few rows: memory is read once, each weight row from end to end.
    for (Index j = 0; j < w.rows; j += kGroupCols) {
      for (Index k = 0; k < x.depth(); k += kBlock<T>) group(j, k, nullptr);
    }
  } else {
    // Many rows: a block of x stays in the second-level cache while all weights pass by.
    alignas(64) T packed[static_cast<std::size_t>(kGroupCols * kBlock<T>)];
    for (Index k = 0; k < x.depth(); k += kBlock<T>) {
      for (Index j = 0; j < w.rows; j += kGroupCols) group(j, k, packed);
    }
  }
}

template class PackedRows<float>;
template class PackedRows<double>;
template Index rows_per_pack<float>();
template Index rows_per_pack<double>();
template void multiply(const PackedRows<float>&, MatrixView<const float>, MatrixView<float>);
template void multiply(const PackedRows<double>&, MatrixView<const double>, MatrixView<double>);

}  // namespace shardproof::ops::gemm
