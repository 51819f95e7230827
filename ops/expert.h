// One expert's SwiGLU MLP on the tokens routed to it:
//   g = stored(x Wg^T), u = stored(x Wu^T), h = stored(silu(g) * u), y = h Wd^T
// Gate and up go in one pass over the copied tokens, block of columns by block, and the activation is taken while a
// block is in the cache; the result equals linear, store and swiglu one after another, bit for bit. y is not rounded:
// under expert tensor parallelism it is a partial sum, stored after its reduction.
#pragma once

#include <span>

#include "ops/cost.h"
#include "ops/format.h"
#include "ops/matrix.h"

namespace shardproof::ops {

/// Where g, u and h are written too, [tokens, width] each; where they are not wanted, without rows.
template <class T>
struct ExpertSteps {
  MatrixView<T> gate = {};
  MatrixView<T> up = {};
  MatrixView<T> activation = {};
};

/// What some models' experts have. Biases that they do not have are empty.
template <class T>
struct ExpertOptions {
  std::span<const T> gate_bias = {};  ///< [width], added to the product before it is stored; so the others
  std::span<const T> up_bias = {};
  std::span<const T> down_bias = {};  ///< [hidden], added to y
  double swiglu_limit = 0;            ///< above 0: clamped_swiglu (swiglu.h)
};

/// x, y [tokens, hidden], w_gate, w_up [width, hidden], w_down [hidden, width]. No tokens cost nothing.
template <class T>
void expert(MatrixView<const T> x, MatrixView<const T> w_gate, MatrixView<const T> w_up, MatrixView<const T> w_down,
            Format format, MatrixView<T> y, const ExpertSteps<T>& steps = {}, const ExpertOptions<T>& options = {});

/// Three gemms and the activation; weights, x and y once, g, u and h written and read. Zero for no tokens.
Cost expert_cost(Index tokens, Index hidden, Index width, int bytes_per_element);

}  // namespace shardproof::ops
