// Compiled with contraction on, as gemm.cpp is.
#include "ops/internal/panel.h"

#include <array>
#include <utility>

namespace shardproof::ops::panel {

namespace {

using simd::Vec;

template <class T, std::size_t kTileRows>
void tile(const T* a, Index a_stride, const T* b, Index b_stride, Index depth, Start start, T* c, Index c_stride) {
  constexpr Index kL = simd::kLanes<T>;
  Vec<T> sum[kTileRows][2];
  SHARDPROOF_UNROLL
  for (std::size_t i = 0; i < kTileRows; ++i) {
    const T* from = c + static_cast<Index>(i) * c_stride;
    sum[i][0] = start == Start::sum_so_far ? simd::load<T>(from) : Vec<T>{};
    sum[i][1] = start == Start::sum_so_far ? simd::load<T>(from + kL) : Vec<T>{};
  }
  SHARDPROOF_UNROLL_STEPS
  for (Index k = 0; k < depth; ++k, b += b_stride) {
    const Vec<T> left = simd::load<T>(b), right = simd::load<T>(b + kL);
    SHARDPROOF_UNROLL
    for (std::size_t i = 0; i < kTileRows; ++i) {
      const Vec<T> factor = simd::broadcast<T>(a[static_cast<Index>(i) * a_stride + k]);
      sum[i][0] = factor * left + sum[i][0];
      sum[i][1] = factor * right + sum[i][1];
    }
  }
  SHARDPROOF_UNROLL
  for (std::size_t i = 0; i < kTileRows; ++i) {
    T* to = c + static_cast<Index>(i) * c_stride;
    simd::store<T>(to, sum[i][0]);
    simd::store<T>(to + kL, sum[i][1]);
  }
}

template <class T>
using Tile = void (*)(const T*, Index, const T*, Index, Index, Start, T*, Index);

template <class T, std::size_t... kRow>
constexpr std::array<Tile<T>, sizeof...(kRow)> tiles_of(std::index_sequence<kRow...>) {
  return {&tile<T, kRow + 1>...};
}

}  // namespace

template <class T>
void multiply(const T* a, Index a_stride, Index rows, const T* b, Index b_stride, Index depth, Start start, T* c,
              Index c_stride) {
  static constexpr auto kTiles = tiles_of<T>(std::make_index_sequence<static_cast<std::size_t>(kRows)>{});
  kTiles[static_cast<std::size_t>(rows - 1)](a, a_stride, b, b_stride, depth, start, c, c_stride);
}

template void multiply(const float*, Index, Index, const float*, Index, Index, Start, float*, Index);
template void multiply(const double*, Index, Index, const double*, Index, Index, Start, double*, Index);

}  // namespace shardproof::ops::panel
