// Compiled with contraction on (see CMakeLists.txt): here a * b + c is one fused operation where the
// instruction set has it. Every lane of every tile goes through the same expression, so which elements share a tile
// still makes no difference.
#include "ops/internal/gemm.h"

#include <algorithm>
#include <array>
#include <utility>

#include "ops/internal/parallel.h"
#include "ops/internal/simd.h"

namespace shardproof::ops::gemm {

namespace {

using simd::kLanes;
using simd::Vec;

// The accumulators of a tile (kTileRows x kTileCols) and the operands of one step fill the vector registers: 16 of
// them, or 32 with 512-bit vectors.
constexpr int kTileRows = simd::kVectorBytes == 64 ? 6 : 3;
constexpr int kTileCols = 4;
// Steps of one vector along k between two foldings of the lanes: long enough to make the folding cheap, short enough
// that kTileCols rows of weights fit the first-level cache, of which 512-bit vectors need all (and fewer steps cost
// more).
constexpr Index kSteps = 128;
// Weight rows that are walked together: one panel, or with few rows of x as many streams as memory likes.
constexpr int kGroupCols = 2 * kTileCols;
// The rows of which a tile of kGroupCols columns has room for its accumulators.
constexpr int kWideTileRows = kTileRows * kTileCols / kGroupCols;
constexpr Index kLineBytes = 64;
// Rows of x that are packed at once: whole tiles whose block of k is at home in the second-level cache.
constexpr Index kRowsPerPack = 96;
static_assert(kRowsPerPack % kTileRows == 0);
// From this many rows on, all weights pass by a block of x, and those to come are asked for. Where a cache holds the
// weights, asking for them pays later.
constexpr Index kManyRows = 12, kManyRowsOfCachedWeights = Index{8} * kTileRows;
// Of larger weights a core's share of the last-level cache holds too little.
constexpr Index kCachedBytes = Index{8} << 20;

template <class T>
constexpr Index kLongestBlock = kSteps* kLanes<T>;

/// Vectors that `depth` elements take.
template <class T>
constexpr Index steps_of(Index depth) {
  return (depth + kLanes<T> - 1) / kLanes<T>;
}

/// The elements of a block of k: as few blocks as the longest allows, of equal whole vectors, so that none is a short
/// rest that costs a pass of its own.
template <class T>
constexpr Index block_of(Index depth) {
  const Index blocks = std::max<Index>(1, (depth + kLongestBlock<T> - 1) / kLongestBlock<T>);
  return std::max<Index>(1, steps_of<T>((depth + blocks - 1) / blocks)) * kLanes<T>;
}

/// Folds spans of kSpan lanes of a and b to spans of kSpan / 2, a's and b's alternating. One operand is a blend and
/// only the other crosses lanes: where b's halves meet, their order is exchanged, which an addition does not notice.
template <class T, int kSpan, int... kLane>
inline Vec<T> fold(Vec<T> a, Vec<T> b, std::integer_sequence<int, kLane...>) {
  constexpr int kHalf = kSpan / 2, kOther = static_cast<int>(sizeof...(kLane));
  const Vec<T> straight = __builtin_shufflevector(a, b, (kLane + (kLane % kSpan < kHalf ? 0 : kOther))...);
  const Vec<T> crossed =
      __builtin_shufflevector(a, b, (kLane % kSpan < kHalf ? kLane + kHalf : kLane - kHalf + kOther)...);
  return straight + crossed;
}

template <class T, int kSpan>
inline Vec<T> fold(Vec<T> a, Vec<T> b) {
  return fold<T, kSpan>(a, b, std::make_integer_sequence<int, static_cast<int>(kLanes<T>)>{});
}

template <class T>
struct QuadOf {
  typedef T type __attribute__((vector_size(4 * sizeof(T))));
  typedef T unaligned __attribute__((vector_size(4 * sizeof(T)), aligned(sizeof(T)), may_alias));
};

/// The sums of the lanes of four vectors, each folded in halves.
template <class T>
inline void sums_of(Vec<T> a, Vec<T> b, Vec<T> c, Vec<T> d, typename QuadOf<T>::type& sums) {
  constexpr int kWidth = static_cast<int>(kLanes<T>);
  const Vec<T> ab = fold<T, kWidth>(a, b), cd = fold<T, kWidth>(c, d);
  if constexpr (kWidth == 2) {
    sums = __builtin_shufflevector(ab, cd, 0, 1, 2, 3);
  } else {
    Vec<T> all = fold<T, kWidth / 2>(ab, cd);
    // Four accumulators, spans of kWidth / 4, in the order a, c, b, d.
    if constexpr (kWidth >= 16) all = fold<T, 4>(all, all);
    if constexpr (kWidth >= 8) all = fold<T, 2>(all, all);
    constexpr int kQuarter = kWidth / 4;
    sums = __builtin_shufflevector(all, all, 0, 2 * kQuarter, kQuarter, 3 * kQuarter);
  }
}

/// One tile over `steps` vectors and a remainder of `rest` elements. Row i of x is at x + i * kLanes, its next vector
/// kRows * kLanes further; the rows of weights lie as they are.
template <class T, std::size_t kRows, std::size_t kCols>
void tile(const T* x, const T* w, Index w_stride, Index steps, Index rest, bool first, T* y, Index y_stride) {
  constexpr Index kL = kLanes<T>;
  constexpr std::size_t kQuads = (kCols + 3) / 4;
  Vec<T> sum[kRows][4 * kQuads];
  SHARDPROOF_UNROLL
  for (std::size_t i = 0; i < kRows; ++i) {
    SHARDPROOF_UNROLL
    for (std::size_t j = 0; j < 4 * kQuads; ++j) sum[i][j] = Vec<T>{};
  }
  const auto step = [&](auto load_w) {
    Vec<T> row[kRows];
    SHARDPROOF_UNROLL
    for (std::size_t i = 0; i < kRows; ++i) row[i] = simd::load<T>(x + static_cast<Index>(i) * kL);
    SHARDPROOF_UNROLL
    for (std::size_t j = 0; j < kCols; ++j) {
      const Vec<T> weight = load_w(w + static_cast<Index>(j) * w_stride);
      SHARDPROOF_UNROLL
      for (std::size_t i = 0; i < kRows; ++i) sum[i][j] = row[i] * weight + sum[i][j];
    }
    x += static_cast<Index>(kRows) * kL;
  };
  SHARDPROOF_UNROLL_STEPS
  for (; steps > 0; --steps) {
    step([](const T* row) { return simd::load<T>(row); });
    w += kL;
  }
  if (rest > 0) step([rest](const T* row) { return simd::load_partial<T>(row, rest); });

  SHARDPROOF_UNROLL
  for (std::size_t i = 0; i < kRows; ++i, y += y_stride) {
    SHARDPROOF_UNROLL
    for (std::size_t q = 0; q < kQuads; ++q) {
      typename QuadOf<T>::type sums;
      sums_of<T>(sum[i][4 * q], sum[i][4 * q + 1], sum[i][4 * q + 2], sum[i][4 * q + 3], sums);
      if (4 * q + 4 <= kCols) {
        auto& to = *reinterpret_cast<typename QuadOf<T>::unaligned*>(y + 4 * q);
        to = first ? sums : to + sums;
      } else {
        SHARDPROOF_UNROLL
        for (std::size_t j = 0; 4 * q + j < kCols; ++j) y[4 * q + j] = first ? sums[j] : y[4 * q + j] + sums[j];
      }
    }
  }
}

template <class T>
using Tile = void (*)(const T*, const T*, Index, Index, Index, bool, T*, Index);

template <class T, std::size_t... kShape>
constexpr auto tiles_of(std::index_sequence<kShape...>) {
  return std::array<Tile<T>, sizeof...(kShape)>{&tile<T, kShape / kTileCols + 1, kShape % kTileCols + 1>...};
}

template <class T>
Tile<T> tile_of(Index rows, Index cols) {
  static constexpr auto kTiles = tiles_of<T>(std::make_index_sequence<kTileRows * kTileCols>{});
  return kTiles[static_cast<std::size_t>((rows - 1) * kTileCols + cols - 1)];
}

/// Tiles of few rows as wide as a group: one row alone needs eight accumulators to hide the latency of the additions.
template <class T, std::size_t... kRow>
constexpr auto wide_tiles_of(std::index_sequence<kRow...>) {
  return std::array<Tile<T>, sizeof...(kRow)>{&tile<T, kRow + 1, kGroupCols>...};
}

template <class T>
constexpr auto kWideTiles = wide_tiles_of<T>(std::make_index_sequence<kWideTileRows>{});

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

/// The rows of the next panel when `left` rows are left: no panel is much smaller than the others.
constexpr Index panel_rows(Index left) {
  return left > kTileRows && left < Index{2} * kTileRows ? (left + 1) / 2 : std::min<Index>(kTileRows, left);
}

/// Asks for the cache lines of rows that are contiguous in k, a few at a time, while other rows are computed on.
template <class T>
class Prefetcher {
 public:
  /// The block of `depth` elements from `k` of each row.
  Prefetcher(MatrixView<const T> rows, Index k, Index depth)
      : from_(rows.data + k), stride_(rows.stride), rows_(rows.rows), line_(0), lines_(depth / kPerLine + 1) {}
  Index lines() const { return rows_ * lines_; }
  void ask(Index lines) {
    for (; lines > 0 && rows_ > 0; --lines) {
      __builtin_prefetch(from_ + line_ * kPerLine, 0, 2);
      if (++line_ == lines_) line_ = 0, from_ += stride_, --rows_;
    }
  }

 private:
  static constexpr Index kPerLine = kLineBytes / static_cast<Index>(sizeof(T));
  const T* from_;
  Index stride_, rows_, line_, lines_;
};

/// One block of k for one group of at most kGroupCols weight rows and all rows of x; `next` will be asked for.
template <class T>
void multiply_group(const PackedRows<T>& x, MatrixView<const T> w, Index k, MatrixView<const T> next, MatrixView<T> y) {
  const Index depth = std::min(block_of<T>(x.depth()), x.depth() - k);
  Prefetcher<T> prefetcher(next, k, depth);
  const Index steps = depth / kLanes<T>, rest = depth % kLanes<T>;
  if (y.rows <= kWideTileRows && w.rows == kGroupCols) {
    kWideTiles<T>[static_cast<std::size_t>(y.rows - 1)](x.panel(0, k), &w(0, k), w.stride, steps, rest, k == 0, y.data,
                                                        y.stride);
    return;
  }
  const Index lines_per_row = prefetcher.lines() / y.rows + 1;
  for (Index i = 0; i < y.rows;) {
    const Index rows = panel_rows(y.rows - i);
    const T* panel = x.panel(i, k);
    prefetcher.ask(lines_per_row * rows);
    for (Index j = 0; j < w.rows; j += kTileCols) {
      const Index cols = std::min<Index>(kTileCols, w.rows - j);
      tile_of<T>(rows, cols)(panel, &w(j, k), w.stride, steps, rest, k == 0, &y(i, j), y.stride);
    }
    i += rows;
  }
}

template <class T>
void multiply_all(const PackedRows<T>& x, MatrixView<const T> w, MatrixView<T> y, Weights weights) {
  const bool many_rows = y.rows >= (weights == Weights::cached ? kManyRowsOfCachedWeights : kManyRows);
  const Index block = block_of<T>(x.depth());
  const Index group_cols = many_rows ? kTileCols : kGroupCols;
  const auto part = [&](Index j) { return w.row_range(j, std::clamp(w.rows - j, Index{0}, group_cols)); };
  const auto group = [&](Index j, Index k) {
    const MatrixView<const T> rows = part(j);
    const MatrixView<const T> next = many_rows ? part(j + group_cols) : MatrixView<const T>{};
    multiply_group<T>(x, rows, k, next, y.col_range(j, rows.rows));
  };
  if (many_rows) {
    // A block of x stays in the second-level cache while all weights pass by.
    for (Index k = 0; k < x.depth(); k += block) {
      for (Index j = 0; j < w.rows; j += group_cols) group(j, k);
    }
  } else {
    // Memory is read once, each weight row from end to end.
    for (Index j = 0; j < w.rows; j += group_cols) {
      for (Index k = 0; k < x.depth(); k += block) group(j, k);
    }
  }
}

}  // namespace

template <class T>
void PackedRows<T>::pack(MatrixView<const T> x) {
  rows_ = x.rows;
  depth_ = x.cols;
  const Index longest = block_of<T>(depth_);
  const Index width = steps_of<T>(depth_) * kLanes<T>;
  if (buffer_.size() < rows_ * width) buffer_ = Matrix<T>(rows_, width);
  T* to = buffer_.data();
  for (Index k = 0; k < depth_; k += longest) {
    const Index depth = std::min(longest, depth_ - k);
    for (Index i = 0; i < rows_;) {
      const Index rows = panel_rows(rows_ - i);
      to = pack_panel<T>(x.row_range(i, rows), k, depth, to);
      i += rows;
    }
  }
}

template <class T>
const T* PackedRows<T>::panel(Index row, Index k) const {
  // Blocks before this one are whole; panels before this one have the block's padded depth.
  const Index depth = steps_of<T>(std::min(block_of<T>(depth_), depth_ - k)) * kLanes<T>;
  return buffer_.data() + rows_ * k + row * depth;
}

template <class T>
Index rows_per_pack() {
  return kRowsPerPack;
}

Weights where_lie(Index bytes) {
  return bytes <= kCachedBytes ? Weights::cached : Weights::in_memory;
}

template <class T>
void multiply(const PackedRows<T>& x, MatrixView<const T> w, MatrixView<T> y, Weights weights) {
  if (y.rows == 0 || y.cols == 0) return;
  if (x.depth() == 0) {
    for (Index i = 0; i < y.rows; ++i) std::fill_n(y.row(i).data(), y.cols, T{0});
    return;
  }
  // What a thread takes is worth waking it for.
  constexpr Index kProductsPerPart = Index{1} << 20;
  const Index groups = kProductsPerPart / (y.rows * x.depth() * kGroupCols) + 1;
  parallel_for(y.cols, groups * kGroupCols, [&](Index begin, Index end) {
    multiply_all<T>(x, w.row_range(begin, end - begin), y.col_range(begin, end - begin), weights);
  });
}

template class PackedRows<float>;
template class PackedRows<double>;
template Index rows_per_pack<float>();
template Index rows_per_pack<double>();
template void multiply(const PackedRows<float>&, MatrixView<const float>, MatrixView<float>, Weights);
template void multiply(const PackedRows<double>&, MatrixView<const double>, MatrixView<double>, Weights);

}  // namespace shardproof::ops::gemm
