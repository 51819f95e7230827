// The register-tiled product behind linear, expert and attention: y = x * w^T over rows that are contiguous in k.
//
// Both operands are walked along k, so that neither needs a transposition: x is copied into panels of a tile's rows,
// the weights are read where they lie. One element of y is always computed the same way:
//   k is cut into equal blocks of at most 128 vectors; within a block, lane l of a vector sums the products of k = l
//   mod kLanes in order; the lanes are folded in halves; the blocks' sums are added in order.
// So its bits depend on its two rows, on k and on the build's vector width, and on nothing else.
#pragma once

#include "ops/matrix.h"

namespace shardproof::ops::gemm {

/// Rows of x copied for the kernel: per block of k, per panel of rows, the panel's vectors side by side.
template <class T>
class PackedRows {
 public:
  PackedRows() = default;
  explicit PackedRows(MatrixView<const T> x) { pack(x); }
  /// Replaces the contents; keeps the buffer when it is large enough.
  void pack(MatrixView<const T> x);

  Index rows() const { return rows_; }
  Index depth() const { return depth_; }
  /// The panel that begins with `row`, for the block of k that begins at `k`.
  const T* panel(Index row, Index k) const;

 private:
  Matrix<T> buffer_;
  Index rows_ = 0;
  Index depth_ = 0;
};

/// Rows that one PackedRows should hold at most, for its blocks to stay in the second-level cache.
template <class T>
Index rows_per_pack();

/// Whether a cache holds the weights or they are read from memory; decides the order of the work, not the bits.
enum class Weights { cached, in_memory };

/// Where weights of so many bytes, all that an op reads, are likely to lie.
Weights where_lie(Index bytes);

/// y[m, n] = x * w^T; w [n, k], y [m, n].
template <class T>
void multiply(const PackedRows<T>& x, MatrixView<const T> w, MatrixView<T> y, Weights weights);

}  // namespace shardproof::ops::gemm
