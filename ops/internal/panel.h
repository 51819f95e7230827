// c += a * b where b is walked along its rows: the product inside attention.
//
// Every element of c is one chain of multiply-adds over k in order (fused where the instruction set has it), so its
// bits do not depend on the tile that it falls in.
#pragma once

#include "ops/internal/simd.h"
#include "ops/matrix.h"

namespace shardproof::ops::panel {

/// Columns that the kernel takes at a time; b and c are padded to a multiple of it.
template <class T>
inline constexpr Index kWidth = 2 * simd::kLanes<T>;

/// Rows of a that the kernel takes at a time.
inline constexpr Index kRows = simd::kVectorBytes == 64 ? 12 : 6;

template <class T>
constexpr Index padded(Index cols) {
  return (cols + kWidth<T> - 1) / kWidth<T> * kWidth<T>;
}

enum class Start { zero, sum_so_far };

/// c[rows, kWidth] = (start == zero ? 0 : c) + a[rows, depth] * b[depth, kWidth], for rows <= kRows.
template <class T>
void multiply(const T* a, Index a_stride, Index rows, const T* b, Index b_stride, Index depth, Start start, T* c,
              Index c_stride);

}  // namespace shardproof::ops::panel
